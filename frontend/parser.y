/* parser.y: the grammar.  Actions only build nodes (tree.c); tokens.c stands between this grammar
 * and lexer.l and knows where a newline ends a statement; syntax_error.c words the messages.
 *
 * Words of plans, recipes and optimizers (`keep`, `warmup`, `next` …) are tokens of their own but
 * also names: the production `name` lists them.  Only the words before them are reserved.
 */
%code top {
/* Spans run from the first symbol to the last; an empty production stands behind its neighbour. */
#define YYLLOC_DEFAULT(current, right, count)                                                    \
    (current) = (count) ? span_join(YYRHSLOC(right, 1), YYRHSLOC(right, count))                  \
                        : (Span){YYRHSLOC(right, 0).source, YYRHSLOC(right, 0).end,              \
                                 YYRHSLOC(right, 0).end}
}

%code requires {
#include "frontend/frontend.h"

/* Lists under construction: the node type's own `next` links them. */
#define DECLARE_LIST(T)                                                                          \
    typedef struct T##List {                                                                     \
        T *first, *last;                                                                         \
        int count;                                                                               \
    } T##List
DECLARE_LIST(Expr);
DECLARE_LIST(ArgGroup);
DECLARE_LIST(IndexItem);
DECLARE_LIST(Parameter);
DECLARE_LIST(Statement);
DECLARE_LIST(IndexRange);
DECLARE_LIST(PartIndex);
DECLARE_LIST(SelectorPart);
DECLARE_LIST(Selector);
DECLARE_LIST(Setting);
DECLARE_LIST(Directive);
DECLARE_LIST(Item);

typedef struct NameList {
    Name *data;
    int count, capacity;
} NameList;

typedef struct Literal { /* a number as written, and its value */
    const char *text;
    double value;
} Literal;

typedef struct Parser Parser;
}

%define api.pure full
%define api.token.prefix {TOKEN_}
%define api.location.type {Span}
%define parse.error custom
%define parse.lac full
%locations
%param {Parser *parser}

%union {
    Name name;
    Literal literal;
    NameList names;
    Expr *expr;
    ExprList exprs;
    ArgGroup *group;
    ArgGroupList groups;
    IndexItem *index_item;
    IndexItemList index_items;
    TypeExpr *type;
    Parameter *parameter;
    ParameterList parameters;
    StatementList statements;
    IndexRange *range;
    IndexRangeList ranges;
    PartIndex *part_index;
    PartIndexList part_indices;
    SelectorPart *part;
    SelectorPartList parts;
    Selector *selector;
    SelectorList selectors;
    Setting *setting;
    SettingList settings;
    Preset *preset;
    Directive *directive;
    DirectiveList directives;
    ItemList items;
}

%initial-action { @$ = (Span){parser->source, 0, 0}; }

%code provides {
#include "frontend/syntax.h"
}

%code {
static void yyerror(Span *place, Parser *parser, const char *message);
}

/* Reserved words. */
%token <name>
    AND "and"  AS "as"  BLOCK "block"  DIM "dim"  ELSE "else"  FALSE "false"  FN "fn"  FOR "for"
    IF "if"  IN "in"  INF "inf"  MODEL "model"  NOT "not"  ON "on"  OR "or"  PARAM "param"
    PLAN "plan"  RECIPE "recipe"  RETURN "return"  THEN "then"  TRUE "true"

/* Words with a meaning at their place, and names elsewhere. */
%token <name>
    BATCH "batch"  BELOW "below"  CLIP "clip"  COSINE "cosine"  EXTENDS "extends"
    FACTORIZE "factorize"  FLAG "flag"  INPUT "input"  INT "int"  KEEP "keep"  LINEAR "linear"
    MEMORY "memory"  MINIMIZE "minimize"  NEXT "next"  OBSERVE "observe"  OPTIMIZER "optimizer"
    OVER "over"  PRECISION "precision"  PRESET "preset"  RECOMPUTE "recompute"  SET "set"
    STATE "state"  STEPS "steps"  TO "to"  USE "use"  VALIDATE "validate"  WARMUP "warmup"
    WITH "with"

%token <name> NAME "a name"  STRING "a string"
%token <literal> NUMBER "a number"
%token NEWLINE "the end of the line"  COMMENT "a comment"
    ARROW "->"  DOTDOT ".."  ANY_DEPTH "**"
    LESS_EQUAL "<="  GREATER_EQUAL ">="  EQUAL "=="  NOT_EQUAL "!="

%precedence "else"
%left "or"
%left "and"
%precedence "not"
%nonassoc '<' "<=" '>' ">=" "==" "!="
%left '+' '-'
%left '*' '/' '%'
%precedence NEGATION
%right '^'

%type <name> name optimizer_name
%type <names> names names_or_none extends
%type <expr> expr operand labelled argument call initial weights bytes below ahead
%type <exprs> exprs arguments
%type <group> group
%type <groups> groups
%type <index_item> index_item
%type <index_items> index_items
%type <type> type axes result
%type <parameter> parameter
%type <parameters> parameters parameter_groups parameter_group parameter_list
%type <statements> body statements ended_statements statement if_statement dims flags
%type <statements> values value
%type <range> range
%type <ranges> ranges
%type <part_index> part_index
%type <part_indices> part_indices
%type <part> part part_name
%type <parts> parts
%type <selector> selector
%type <selectors> selectors keep on
%type <setting> setting
%type <settings> settings ended_settings
%type <preset> preset
%type <directives> plan_body directives ended_directives directive
%type <items> item

%%

/* ---- items ---------------------------------------------------------------------------------- */

file: items

items:
    ended_items
  | ended_items item                 { tree_add_items(parser, $item); }
  | ended_items broken               { parser_recovered(parser); yyerrok; }

ended_items:
    %empty
  | ended_items end
  | ended_items item end             { tree_add_items(parser, $item); }
  | ended_items broken end           { parser_recovered(parser); yyerrok; }

/* After a syntax error the rest of the statement is skipped (tokens.c). */
broken:
    error                            { if (parser_recover(parser)) yyclearin; }

end: NEWLINE | ';'

item:
    "use" STRING
        { $$ = tree_item(parser, ITEM_USE, $STRING, @$); }
  | dims
        { $$ = tree_statement_items(parser, $dims); }
  | flags
        { $$ = tree_statement_items(parser, $flags); }
  | preset
        { $$ = tree_item(parser, ITEM_PRESET, $preset->name, @$); $$.first->preset = $preset; }
  | "block" name parameters result body
        { $$ = tree_definition(parser, ITEM_BLOCK, $name, $parameters, $result, $body, @$); }
  | "fn" name parameters result body
        { $$ = tree_definition(parser, ITEM_FN, $name, $parameters, $result, $body, @$); }
  | "optimizer" name parameters body
        { $$ = tree_definition(parser, ITEM_OPTIMIZER, $name, $parameters, NULL, $body, @$); }
  | "model" name body
        { $$ = tree_definition(parser, ITEM_MODEL, $name, (ParameterList){0}, NULL, $body, @$); }
  | "plan" name extends plan_body
        { $$ = tree_plan(parser, ITEM_PLAN, $name, $extends, $plan_body, @$); }
  | "recipe" name extends plan_body
        { $$ = tree_plan(parser, ITEM_RECIPE, $name, $extends, $plan_body, @$); }

parameters:
    '(' parameter_groups ')'         { $$ = $parameter_groups; }

parameter_groups:
    parameter_group                  { $$ = tree_parameter_group((ParameterList){0}, $1); }
  | parameter_groups ';' parameter_group
                                     { $$ = tree_parameter_group($1, $3); }

parameter_group:
    %empty                           { $$ = (ParameterList){0}; }
  | parameter_list
  | parameter_list "->" parameter_list
                                     { $$ = tree_parameter_arrow($1, $3); }

parameter_list:
    parameter                        { $$ = (ParameterList){0}; LIST_APPEND($$, $1); }
  | parameter_list ',' parameter     { $$ = $1; LIST_APPEND($$, $3); }

parameter:
    name                             { $$ = tree_parameter(parser, $name, NULL, NULL); }
  | name '=' expr                    { $$ = tree_parameter(parser, $name, NULL, $expr); }
  | name ':' type                    { $$ = tree_parameter(parser, $name, $type, NULL); }
  | name ':' type '=' expr           { $$ = tree_parameter(parser, $name, $type, $expr); }

result:
    %empty                           { $$ = NULL; }
  | "->" type                        { $$ = $type; }

extends:
    %empty                           { $$ = (NameList){0}; }
  | "extends" names                  { $$ = $names; }

/* ---- statements ----------------------------------------------------------------------------- */

body:
    '{' statements '}'               { $$ = $statements; }

statements:
    ended_statements
  | ended_statements statement       { $$ = $1; LIST_CONCAT($$, $2); }
  | ended_statements broken          { $$ = $1; parser_recovered(parser); yyerrok; }

ended_statements:
    %empty                           { $$ = (StatementList){0}; }
  | ended_statements end
  | ended_statements statement end   { $$ = $1; LIST_CONCAT($$, $2); }
  | ended_statements broken end      { $$ = $1; parser_recovered(parser); yyerrok; }

statement:
    name '=' labelled
        { $$ = tree_bind(parser, $name, NULL, $labelled, @$); }
  | name ':' type '=' labelled
        { $$ = tree_bind(parser, $name, $type, $labelled, @$); }
  | "return" labelled
        { $$ = tree_statement(parser, STATEMENT_RETURN, (NameList){0}, $labelled, @$); }
  | "param" names ':' type
        { $$ = tree_statement(parser, STATEMENT_PARAM, $names, NULL, @$); $$.first->type = $type; }
  | "param" names ':' type '~' initial
        { $$ = tree_statement(parser, STATEMENT_PARAM, $names, $initial, @$);
          $$.first->type = $type; }
  | dims
  | flags
  | "for" name "in" expr body
        { $$ = tree_for(parser, $name, $expr, NULL, $body, @$); }
  | "for" name "in" expr ".." expr body
        { $$ = tree_for(parser, $name, $4, $6, $body, @$); }
  | if_statement
  | "input" name ':' type
        { $$ = tree_bind(parser, $name, $type, NULL, @$); $$.first->kind = STATEMENT_INPUT; }
  | "minimize" expr weights
        { $$ = tree_statement(parser, STATEMENT_MINIMIZE, (NameList){0}, $expr, @$);
          $$.first->value2 = $weights; }
  | "observe" name '=' labelled
        { $$ = tree_bind(parser, $name, NULL, $labelled, @$); $$.first->kind = STATEMENT_OBSERVE; }
  | "state" names '~' initial
        { $$ = tree_statement(parser, STATEMENT_STATE, $names, $initial, @$); }
  | "next" name '=' labelled
        { $$ = tree_bind(parser, $name, NULL, $labelled, @$); $$.first->kind = STATEMENT_NEXT; }

if_statement:
    "if" expr body
        { $$ = tree_if_statement(parser, $expr, $body, (StatementList){0}, @$); }
  | "if" expr body[then] "else" body[else]
        { $$ = tree_if_statement(parser, $expr, $then, $else, @$); }
  | "if" expr body[then] "else" if_statement[else]
        { $$ = tree_if_statement(parser, $expr, $then, $else, @$); }

weights:
    %empty                           { $$ = NULL; }
  | "over" expr                      { $$ = $expr; }

dims: "dim" values                  { $$ = tree_set_kind($values, STATEMENT_DIM); }

flags: "flag" values                { $$ = tree_set_kind($values, STATEMENT_FLAG); }

values:
    value
  | values ',' value                 { $$ = $1; LIST_CONCAT($$, $3); }

value:
    name '=' expr                    { $$ = tree_bind(parser, $name, NULL, $expr, @$); }

/* ---- types ---------------------------------------------------------------------------------- */

type:
    '[' axes ']'                     { $$ = $axes; $$->span = @$; }
  | "int" '[' axes ']' below ahead
        { $$ = $axes; $$->is_int = true; $$->below = $5; $$->next_token = $6; $$->span = @$; }

axes:
    names_or_none                    { $$ = tree_axes(parser, $1, NULL); }
  | names_or_none "->" names_or_none { $$ = tree_axes(parser, $1, &$3); }
  | ".."                             { $$ = tree_open_axes(parser, (NameList){0}, NULL); }
  | ".." "->" names_or_none          { $$ = tree_open_axes(parser, (NameList){0}, &$3); }
  | ".." ',' names                   { $$ = tree_open_axes(parser, $3, NULL); }
  | ".." ',' names "->" names_or_none
                                     { $$ = tree_open_axes(parser, $3, &$5); }

below:
    %empty                           { $$ = NULL; }
  | "below" expr                     { $$ = $expr; }

ahead:
    %empty                           { $$ = NULL; }
  | "next" expr                      { $$ = $expr; }

initial:
    name                             { $$ = tree_name(parser, $name); }
  | call

/* ---- expressions ---------------------------------------------------------------------------- */

labelled:
    expr
  | name ':' expr                    { $$ = tree_labelled(parser, EXPR_LABEL, $name, $expr, @$); }

/* What may stand before an index. */
operand:
    NUMBER                           { $$ = tree_number(parser, $1, @$); }
  | "inf"                            { $$ = tree_infinity(parser, @$); }
  | "true"                           { $$ = tree_bool(parser, true, @$); }
  | "false"                          { $$ = tree_bool(parser, false, @$); }
  | name                             { $$ = tree_name(parser, $1); }
  | call
  | operand '[' index_items ']'      { $$ = tree_index(parser, $1, $3, @$); }
  | '(' exprs ')'                    { $$ = tree_parenthesized(parser, $2, @$); }
  | '(' exprs "->" exprs ')'         { $$ = tree_arrow_list(parser, $2, $4, @$); }
  | '(' name ':' expr ')'            { $$ = tree_labelled(parser, EXPR_LABEL, $2, $4, @$); }

expr:
    operand
  | '-' expr %prec NEGATION          { $$ = tree_unary(parser, OPERATOR_NEGATE, $2, @$); }
  | "not" expr                       { $$ = tree_unary(parser, OPERATOR_NOT, $2, @$); }
  | expr '^' expr                    { $$ = tree_binary(parser, OPERATOR_POWER, $1, $3, @$); }
  | expr '*' expr                    { $$ = tree_binary(parser, OPERATOR_MULTIPLY, $1, $3, @$); }
  | expr '/' expr                    { $$ = tree_binary(parser, OPERATOR_DIVIDE, $1, $3, @$); }
  | expr '%' expr                    { $$ = tree_binary(parser, OPERATOR_MODULO, $1, $3, @$); }
  | expr '+' expr                    { $$ = tree_binary(parser, OPERATOR_ADD, $1, $3, @$); }
  | expr '-' expr                    { $$ = tree_binary(parser, OPERATOR_SUBTRACT, $1, $3, @$); }
  | expr '<' expr                    { $$ = tree_binary(parser, OPERATOR_LESS, $1, $3, @$); }
  | expr "<=" expr                   { $$ = tree_binary(parser, OPERATOR_LESS_EQUAL, $1, $3, @$); }
  | expr '>' expr                    { $$ = tree_binary(parser, OPERATOR_GREATER, $1, $3, @$); }
  | expr ">=" expr                   { $$ = tree_binary(parser, OPERATOR_GREATER_EQUAL, $1, $3, @$); }
  | expr "==" expr                   { $$ = tree_binary(parser, OPERATOR_EQUAL, $1, $3, @$); }
  | expr "!=" expr                   { $$ = tree_binary(parser, OPERATOR_NOT_EQUAL, $1, $3, @$); }
  | expr "and" expr                  { $$ = tree_binary(parser, OPERATOR_AND, $1, $3, @$); }
  | expr "or" expr                   { $$ = tree_binary(parser, OPERATOR_OR, $1, $3, @$); }
  | "if" expr "then" expr "else" expr
                                     { $$ = tree_if(parser, $2, $4, $6, @$); }

exprs:
    expr                             { $$ = (ExprList){0}; LIST_APPEND($$, $1); }
  | exprs ',' expr                   { $$ = $1; LIST_APPEND($$, $3); }

call:
    name '(' groups ')'              { $$ = tree_call(parser, $name, $groups, @$); }

/* What stands between semicolons: the tensors, then axes and values. */
groups:
    group                            { $$ = (ArgGroupList){0}; LIST_APPEND($$, $1); }
  | groups ';' group                 { $$ = $1; LIST_APPEND($$, $3); }

group:
    %empty                           { $$ = tree_group(parser, (ExprList){0}, NULL, @$); }
  | arguments                        { $$ = tree_group(parser, $1, NULL, @$); }
  | arguments "->"                   { $$ = tree_group(parser, $1, &(ExprList){0}, @$); }
  | arguments "->" arguments         { $$ = tree_group(parser, $1, &$3, @$); }
  | "->" arguments                   { $$ = tree_group(parser, (ExprList){0}, &$2, @$); }

arguments:
    argument                         { $$ = (ExprList){0}; LIST_APPEND($$, $1); }
  | arguments ',' argument           { $$ = $1; LIST_APPEND($$, $3); }

argument:
    labelled
  | name '=' expr                    { $$ = tree_labelled(parser, EXPR_NAMED, $name, $expr, @$); }

index_items:
    index_item                       { $$ = (IndexItemList){0}; LIST_APPEND($$, $1); }
  | index_items ',' index_item       { $$ = $1; LIST_APPEND($$, $3); }

index_item:
    expr                             { $$ = tree_gather(parser, $expr, @$); }
  | name '=' expr                    { $$ = tree_pick(parser, $name, $expr, @$); }
  | expr "as" name                   { $$ = tree_rename(parser, $expr, tree_one_name(parser, $name),
                                                        false, @$); }
  | expr "as" '(' names ')'          { $$ = tree_rename(parser, $expr, $names, true, @$); }

/* ---- plans and recipes ---------------------------------------------------------------------- */

plan_body:
    '{' directives '}'               { $$ = $directives; }

directives:
    ended_directives
  | ended_directives directive       { $$ = tree_add_directives(parser, $1, $2); }
  | ended_directives broken          { $$ = $1; parser_recovered(parser); yyerrok; }

ended_directives:
    %empty                           { $$ = (DirectiveList){0}; }
  | ended_directives end
  | ended_directives directive end   { $$ = tree_add_directives(parser, $1, $2); }
  | ended_directives broken end      { $$ = $1; parser_recovered(parser); yyerrok; }

directive:
    dims                             { $$ = tree_value_directives(parser, $dims, DIRECTIVE_DIM); }
  | flags                            { $$ = tree_value_directives(parser, $flags, DIRECTIVE_FLAG); }
  | preset                           { $$ = tree_directive(parser, DIRECTIVE_PRESET, NULL, @$);
                                       $$.first->preset = $preset; }
  | "set" values                     { $$ = tree_value_directives(parser, $values, DIRECTIVE_SET); }
  | "factorize" selectors "with" call
        { $$ = tree_directive(parser, DIRECTIVE_FACTORIZE, NULL, @$);
          $$.first->selectors = $selectors.first; $$.first->call = $call; }
  | "recompute" selectors keep
        { $$ = tree_directive(parser, DIRECTIVE_RECOMPUTE, NULL, @$);
          $$.first->selectors = $selectors.first; $$.first->keep = $keep.first; }
  | "memory" bytes
        { $$ = tree_directive(parser, DIRECTIVE_MEMORY, $bytes, @$); }
  | "precision" name
        { $$ = tree_directive(parser, DIRECTIVE_PRECISION, NULL, @$); $$.first->name = $name; }
  | "optimizer" call on
        { $$ = tree_optimizer_use(parser, $call, $on, true, @$); }
  /* The next of `optimizer a(…) on s; b(…)`: as a directive of its own, for the `;` between. */
  | optimizer_name '(' groups ')' on
        { $$ = tree_optimizer_use(parser, tree_call(parser, $1, $groups, span_join(@1, @4)), $on,
                                  false, @$); }
  | "warmup" expr                    { $$ = tree_directive(parser, DIRECTIVE_WARMUP, $2, @$); }
  | "cosine" "to" expr               { $$ = tree_directive(parser, DIRECTIVE_COSINE, $3, @$); }
  | "linear" "to" expr               { $$ = tree_directive(parser, DIRECTIVE_LINEAR, $3, @$); }
  | "clip" expr                      { $$ = tree_directive(parser, DIRECTIVE_CLIP, $2, @$); }
  | "batch" expr                     { $$ = tree_directive(parser, DIRECTIVE_BATCH, $2, @$); }
  | "steps" expr                     { $$ = tree_directive(parser, DIRECTIVE_STEPS, $2, @$); }
  | "validate" expr                  { $$ = tree_directive(parser, DIRECTIVE_VALIDATE, $2, @$); }

optimizer_name: NAME

on:
    %empty                           { $$ = (SelectorList){0}; }
  | "on" selectors                   { $$ = $selectors; }

keep:
    %empty                           { $$ = (SelectorList){0}; }
  | "keep" selectors                 { $$ = $selectors; }

bytes:
    expr                             { $$ = tree_split_bytes(parser, $expr); }
  | expr NAME                        { $$ = tree_bytes(parser, $expr, $NAME, @$); }

preset:
    "preset" name '{' settings '}'   { $$ = tree_preset(parser, $name, $settings, @$); }

settings:
    ended_settings
  | ended_settings setting           { $$ = $1; LIST_APPEND($$, $2); }
  | ended_settings broken            { $$ = $1; parser_recovered(parser); yyerrok; }

ended_settings:
    %empty                           { $$ = (SettingList){0}; }
  | ended_settings setting_end
  | ended_settings setting setting_end
                                     { $$ = $1; LIST_APPEND($$, $2); }
  | ended_settings broken setting_end
                                     { $$ = $1; parser_recovered(parser); yyerrok; }

setting_end: end | ','

setting:
    name '=' expr                    { $$ = tree_setting(parser, $name, $expr); }

/* ---- selectors ------------------------------------------------------------------------------ */

selectors:
    selector                         { $$ = (SelectorList){0}; LIST_APPEND($$, $1); }
  | selectors ',' selector           { $$ = $1; LIST_APPEND($$, $3); }

selector:
    parts                            { $$ = tree_selector(parser, $parts, @$); }

parts:
    part                             { $$ = (SelectorPartList){0}; LIST_APPEND($$, $1); }
  | parts '.' part                   { $$ = $1; LIST_APPEND($$, $3); }

part:
    part_name part_indices           { $$ = $1; $$->indices = $2.first; }
  | '*'                              { $$ = tree_part(parser, PART_ANY); }
  | "**"                             { $$ = tree_part(parser, PART_ANY_DEPTH); }

part_name:
    name                             { $$ = tree_part(parser, PART_NAME); $$->name = $name; }
  | '{' selectors '}'                { $$ = tree_part(parser, PART_CHOICE);
                                       $$->choices = $selectors.first; }

part_indices:
    %empty                           { $$ = (PartIndexList){0}; }
  | part_indices part_index          { $$ = $1; LIST_APPEND($$, $2); }

part_index:
    '[' '*' ']'                      { $$ = tree_part_index(parser, NULL); }
  | '[' ranges ']'                   { $$ = tree_part_index(parser, $ranges.first); }

ranges:
    range                            { $$ = (IndexRangeList){0}; LIST_APPEND($$, $1); }
  | ranges ',' range                 { $$ = $1; LIST_APPEND($$, $3); }

range:
    expr                             { $$ = tree_range(parser, $expr, NULL); }
  | expr ".." expr                   { $$ = tree_range(parser, $1, $3); }

/* ---- names ---------------------------------------------------------------------------------- */

names:
    name                             { $$ = tree_one_name(parser, $1); }
  | names ',' name                   { $$ = $1; tree_append_name(parser, &$$, $3); }

names_or_none:
    %empty                           { $$ = (NameList){0}; }
  | names

name:
    NAME
  | "batch" | "below" | "clip" | "cosine" | "extends" | "factorize" | "flag" | "input" | "int"
  | "keep" | "linear" | "memory" | "minimize" | "next" | "observe" | "optimizer" | "over"
  | "precision" | "preset" | "recompute" | "set" | "state" | "steps" | "to" | "use" | "validate"
  | "warmup" | "with"

%%

/* Bison calls this where no token of the grammar may stand. */
static int yyreport_syntax_error(const yypcontext_t *context, Parser *parser) {
    const char *expected[YYNTOKENS] = {0};
    yysymbol_kind_t kinds[YYNTOKENS];
    int count = yypcontext_expected_tokens(context, kinds, YYNTOKENS);
    for (int i = 0; i < count; i++)
        expected[i] = yysymbol_name(kinds[i]);
    syntax_error_report(parser, expected, count > 0 ? count : 0);
    return 0;
}

/* Bison calls this when its own stack is full, and for nothing else. */
static void yyerror(Span *place, Parser *parser, const char *message) {
    (void)message;
    parser_too_deep(parser, *place);
}
