# Tables of docs/quality.md, in Markdown, from the results of one setup.
#     awk -v setup=HASH -v points=FILE -f report.awk ARMS RESULTS
# `points`: a file that gets what the pictures show, as JSON lines.
function value(line, key,    at) { # of a key in a JSON line: a number or text without quotes
    if (!match(line, "\"" key "\":\"?[^,\"}]*"))
        return ""
    at = substr(line, RSTART, RLENGTH)
    sub("^\"" key "\":\"?", "", at)
    return at
}
function by_source(line, source) { # of the test split
    return value(substr(line, index(line, "\"test_by_source\"")), source) + 0
}
function median(list, count,    i, j, x) { # sorts list[1…count]
    for (i = 2; i <= count; i++) {
        x = list[i]
        for (j = i - 1; j >= 1 && list[j] > x; j--)
            list[j + 1] = list[j]
        list[j + 1] = x
    }
    return count % 2 ? list[(count + 1) / 2] : (list[count / 2] + list[count / 2 + 1]) / 2
}
function with_commas(number,    text, out) {
    text = sprintf("%d", number)
    for (out = ""; length(text) > 3; text = substr(text, 1, length(text) - 3))
        out = "," substr(text, length(text) - 2) out
    return text out
}

BEGIN {
    TUNE = 4194304; FULL = 16777216; TUNE_SEED = 11; SEEDS = 3
    split("12.706 4.303", student, " ") # 97.5% of Student's t with 1 and 2 degrees of freedom
    source_count = split("gcide linux python perl foldoc", sources, " ")
}
FNR == NR {
    if (/^[a-z]/)
        arms[++arm_count] = $1
    next
}
value($0, "setup") != setup { next }
value($0, "kind") == "time" {
    which = value($0, "arm") SUBSEP value($0, "threads")
    times[which, ++time_count[which]] = value($0, "update_s") + 0
    if (value($0, "threads") > most_threads)
        most_threads = value($0, "threads")
    timed_on = value($0, "processor"); timed_commit = value($0, "commit")
}
value($0, "kind") == "run" {
    arm = value($0, "arm"); bytes = value($0, "tokens"); lr = value($0, "lr"); seed = value($0, "seed")
    if (!((arm, bytes, lr, seed) in line))
        runs[bytes]++
    full_updates = FULL * value($0, "updates") / bytes
    line[arm, bytes, lr, seed] = $0
    diverged = value($0, "diverged") == "true"
    valid[arm, bytes, lr, seed] = diverged ? 1e9 : value($0, "valid") + 0
    if (!diverged && bytes == FULL)
        test[arm, lr, seed] = value($0, "test") + 0
    if (!(lr in known)) {
        known[lr] = 1
        rates[++rate_count] = lr
    }
    flops[arm] = value($0, "train_flops") / value($0, "tokens")
    peak[arm] = value($0, "peak_bytes"); params[arm] = value($0, "params")
    spent += value($0, "wall_s")
    if (!(value($0, "commit") in commits)) {
        commits[value($0, "commit")] = 1
        commit_list = commit_list (commit_list ? ", " : "") "`" value($0, "commit") "`"
    }
    if (!(value($0, "processor") in processors)) {
        processors[value($0, "processor")] = 1
        processor_list = processor_list (processor_list ? ", " : "") value($0, "processor")
    }
}

function loss_text(x) { return x >= 1e9 ? "diverged" : sprintf("%.4f", x) }

function sort_rates(    i, j, x) {
    for (i = 2; i <= rate_count; i++) {
        x = rates[i]
        for (j = i - 1; j >= 1 && rates[j] + 0 > x + 0; j--)
            rates[j + 1] = rates[j]
        rates[j + 1] = x
    }
}

# The rate that stands for an arm: of those with most seeds finished, the lowest mean on valid.
function choose(arm,    i, seed, n, sum, best_n, best) {
    chosen[arm] = ""
    finished[arm] = 0
    for (i = 1; i <= rate_count; i++) {
        n = sum = 0
        for (seed = 1; seed <= SEEDS; seed++)
            if ((arm, FULL, rates[i], seed) in valid) {
                n++
                sum += valid[arm, FULL, rates[i], seed]
            }
        if (n == SEEDS)
            finished[arm]++
        if (n && (n > best_n || (n == best_n && sum / n < best))) {
            best_n = n
            best = sum / n
            chosen[arm] = rates[i]
        }
    }
}

function tuning_table(    a, i, best, x, text) {
    print "### Rates, at 4 MB\n"
    print "Loss on `valid` (nats a byte) of one run each, seed " TUNE_SEED "; the best of an arm in bold.\n"
    printf "| arm |"
    for (i = 1; i <= rate_count; i++)
        printf " %s |", rates[i]
    printf "\n|---|"
    for (i = 1; i <= rate_count; i++)
        printf "---|"
    print ""
    for (a = 1; a <= arm_count; a++) {
        best = 1e10
        for (i = 1; i <= rate_count; i++)
            if ((arms[a], TUNE, rates[i], TUNE_SEED) in valid && valid[arms[a], TUNE, rates[i], TUNE_SEED] < best)
                best = valid[arms[a], TUNE, rates[i], TUNE_SEED]
        printf "| `%s` |", arms[a]
        for (i = 1; i <= rate_count; i++) {
            text = ""
            if ((arms[a], TUNE, rates[i], TUNE_SEED) in valid) {
                x = valid[arms[a], TUNE, rates[i], TUNE_SEED]
                text = x == best ? "**" loss_text(x) "**" : loss_text(x)
                if (x < 1e9)
                    point("tune", arms[a], rates[i], x)
            }
            printf " %s |", text
        }
        print ""
    }
    print ""
}

function point(kind, arm, lr, loss) {
    printf "{\"kind\":\"%s\",\"arm\":\"%s\",\"family\":\"%s\",\"lr\":%s,\"loss\":%.6f,\"train_flops\":%.6e,\"peak_mib\":%.2f%s}\n", kind, arm,
           arm ~ /^cola/ ? "CoLA" : arm ~ /^lowrank/ ? "W = BA" : "dense", lr, loss, flops[arm] * FULL, peak[arm] / 1048576,
           seconds[arm] ? sprintf(",\"seconds\":%.1f", seconds[arm] * full_updates) : "" > points
}

function full_table(    a, i, seed, n, sum, squares, mean, text) {
    print "### Full length, 16 MB\n"
    print "Loss on `test` (nats a byte) by seed. The rate in bold stands for the arm: its mean on `valid` is the lower.\n"
    print "| arm | rate | mean on valid | seed 1 | seed 2 | seed 3 | mean | standard deviation |"
    print "|---|---|---|---|---|---|---|---|"
    for (a = 1; a <= arm_count; a++)
        for (i = 1; i <= rate_count; i++) {
            n = sum = squares = valid_sum = 0
            text = ""
            for (seed = 1; seed <= SEEDS; seed++) {
                if (!((arms[a], FULL, rates[i], seed) in valid)) {
                    text = text " |"
                    continue
                }
                n++
                valid_sum += valid[arms[a], FULL, rates[i], seed]
                x = (arms[a], rates[i], seed) in test ? test[arms[a], rates[i], seed] : 1e9
                sum += x
                squares += x * x
                text = text " " loss_text(x) " |"
                if (x < 1e9 && rates[i] == chosen[arms[a]])
                    point("full", arms[a], rates[i], x)
            }
            if (!n)
                continue
            mean = sum / n
            spread = n > 1 && mean < 1e9 ? sprintf("%.4f", sqrt(positive(squares - n * mean * mean) / (n - 1))) : ""
            printf "| `%s` | %s | %s |%s %s | %s |\n", arms[a],
                   rates[i] == chosen[arms[a]] ? "**" rates[i] "**" : rates[i], loss_text(valid_sum / n),
                   text, loss_text(mean), spread
        }
    print ""
}
function positive(x) { return x > 0 ? x : 0 }

function source_table(    a, s, seed, n, sum) {
    print "Loss on `test` by source, the mean over the seeds of the rate that stands for the arm:\n"
    printf "| arm |"
    for (s = 1; s <= source_count; s++)
        printf " %s |", sources[s]
    print " all |"
    print "|---|---|---|---|---|---|---|"
    for (a = 1; a <= arm_count; a++) {
        printf "| `%s` |", arms[a]
        for (s = 1; s <= source_count + 1; s++) {
            n = sum = 0
            for (seed = 1; seed <= SEEDS; seed++)
                if ((arms[a], chosen[arms[a]], seed) in test) {
                    n++
                    if (s > source_count)
                        sum += test[arms[a], chosen[arms[a]], seed]
                    else
                        sum += by_source(line[arms[a], FULL, chosen[arms[a]], seed], sources[s])
                }
            printf " %s |", n ? sprintf("%.4f", sum / n) : ""
        }
        print ""
    }
    print ""
}

# The loss of hypothesis h's difference for a seed; sets `have` to whether its runs are there.
function difference(h, seed,    cola, full, small, share) {
    have = 0
    if (!(("cola", chosen["cola"], seed) in test))
        return 0
    cola = test["cola", chosen["cola"], seed]
    if (h == 3) {
        have = ("lowrank", chosen["lowrank"], seed) in test
        return have ? cola - test["lowrank", chosen["lowrank"], seed] : 0
    }
    if (!(("full", chosen["full"], seed) in test))
        return 0
    full = test["full", chosen["full"], seed]
    if (h == 1) {
        have = 1
        return cola - full - 0.01 * full
    }
    have = ("dense_flops", chosen["dense_flops"], seed) in test
    if (!have)
        return 0
    small = test["dense_flops", chosen["dense_flops"], seed]
    share = log(flops["cola"] / flops["dense_flops"]) / log(flops["full"] / flops["dense_flops"])
    return cola - (small + share * (full - small))
}
function plain_difference(a, b,    seed, n, sum) {
    n = sum = 0
    for (seed = 1; seed <= SEEDS; seed++)
        if ((a, chosen[a], seed) in test && (b, chosen[b], seed) in test) {
            n++
            sum += test[a, chosen[a], seed] - test[b, chosen[b], seed]
        }
    return n ? sprintf("%+.4f", sum / n) : "not yet known"
}

function hypotheses(    h, seed, n, sum, squares, mean, half, text, complete, need, count, i, names) {
    split("1. on par with full rank|2. better than small at equal FLOPs|3. the nonlinearity matters", names, "|")
    need[1] = "cola full"; need[2] = "cola full dense_flops"; need[3] = "cola lowrank"
    print "### The hypotheses\n"
    print "| hypothesis | Δ, seeds 1, 2, 3 | mean Δ | 95% interval | decision |"
    print "|---|---|---|---|---|"
    for (h = 1; h <= 3; h++) {
        n = sum = squares = 0
        text = ""
        for (seed = 1; seed <= SEEDS; seed++) {
            x = difference(h, seed)
            if (have) {
                n++
                sum += x
                squares += x * x
            }
            text = text (seed > 1 ? ", " : "") (have ? sprintf("%+.4f", x) : "·")
        }
        complete = n == SEEDS
        count = split(need[h], names_needed, " ")
        for (i = 1; i <= count; i++)
            complete = complete && finished[names_needed[i]] >= 2
        if (n < 2) {
            printf "| %s | %s | %s | | open: runs are missing |\n", names[h], text, n ? sprintf("%+.4f", sum) : ""
            continue
        }
        mean = sum / n
        half = student[n - 1] * sqrt(positive(squares - n * mean * mean) / (n - 1) / n)
        decision = mean + half < 0 ? "**supported**" : mean - half > 0 ? "**refuted**" : "**undecided**"
        if (!complete)
            decision = "open: runs are missing"
        printf "| %s | %s | %+.4f | %+.4f … %+.4f | %s |\n", names[h], text, mean, mean - half, mean + half, decision
    }
    printf "\nMean differences as they are, without the 1%% and the line: `cola` - `full` %s, `cola` - `dense_flops` %s, " \
           "`cola` - `dense_params` %s, `cola_d8` - `dense_params` %s, `cola` - `lowrank` %s, `cola_d8` - `cola` %s.\n\n",
           plain_difference("cola", "full"), plain_difference("cola", "dense_flops"),
           plain_difference("cola", "dense_params"), plain_difference("cola_d8", "dense_params"),
           plain_difference("cola", "lowrank"), plain_difference("cola_d8", "cola")
}

# The median of the rounds; 0 where none was measured.
function update_seconds(arm, threads,    i, n, list) {
    n = time_count[arm, threads] + 0
    for (i = 1; i <= n; i++)
        list[i] = times[arm, threads, i]
    return n ? median(list, n) : 0
}
function milliseconds(x) { return x ? sprintf("%.0f", 1000 * x) : "" }

function cost_table(    a, arm) {
    print "### What a full-length run costs\n"
    print "| arm | parameters | training FLOPs | ms an update, one thread | seconds, one thread | ms an update, " most_threads + 0 \
          " threads | peak MiB |"
    print "|---|---|---|---|---|---|---|"
    for (a = 1; a <= arm_count; a++) {
        arm = arms[a]
        if (!(arm in flops))
            continue
        printf "| `%s` | %s | %.3e | %s | %s | %s | %.1f |\n", arm, with_commas(params[arm]), flops[arm] * FULL,
               milliseconds(seconds[arm]), seconds[arm] ? sprintf("%.0f", seconds[arm] * full_updates) : "",
               milliseconds(update_seconds(arm, most_threads)), peak[arm] / 1048576
    }
    if (timed_on)
        printf "\nTimes: medians of %d rounds (one thread) and %d (%d threads) on %s, measured apart from the runs, at commit `%s`.\n", \
               time_count["full", 1], time_count["full", most_threads], most_threads, timed_on, timed_commit
    print ""
}

END {
    sort_rates()
    for (a = 1; a <= arm_count; a++) {
        choose(arms[a])
        seconds[arms[a]] = update_seconds(arms[a], 1)
    }
    if (!rate_count) {
        print "No run is finished yet.\n"
        exit
    }
    printf "%d tuning runs are finished (24, and further ones where the best was at an edge), and %d of %d at full length.\n",
           runs[TUNE], runs[FULL], 2 * SEEDS * arm_count
    printf "Setup `%s`; colac at %s; on %s; the runs took %.1f hours of shared processor time.\n\n", setup,
           commit_list, processor_list, spent / 3600
    if (runs[FULL])
        hypotheses()
    tuning_table()
    if (runs[FULL]) {
        full_table()
        source_table()
    }
    cost_table()
}
