# The runs that are still to do, most useful first: arm, plan, D, F, R, bytes, lr, seed.
#     awk -v setup=HASH -v stage=all -v only= -f queue.awk ARMS RESULTS
# Tuning: rates of a ladder, four about its lower middle first, arms interleaved; where the best of an
# arm is at the edge of what was tried, the ladder's next rate beyond it.  Full length, for an arm
# whose best lies inside: that rate with seeds 1, 2, 3, then its better neighbour with the same.
function value(line, key,    at) { # of a key in a JSON line: a number or text without quotes
    if (!match(line, "\"" key "\":\"?[^,\"}]*"))
        return ""
    at = substr(line, RSTART, RLENGTH)
    sub("^\"" key "\":\"?", "", at)
    return at
}
function say(arm, bytes, lr, seed) {
    if ((arm, bytes, lr, seed) in loss)
        return 0
    print arm, shape[arm], bytes, lr, seed
    return 1
}
function tuned(arm, rate) { return loss[arm, TUNE, rates[rate], TUNE_SEED] }
BEGIN {
    count = split("3e-4 6e-4 1e-3 1.7e-3 3e-3 5e-3 8e-3 1.4e-2 2.4e-2 4e-2 7e-2", rates, " ")
    first = 3
    tried = split("4 5 3 6", order, " ") # places in the ladder, from `first` to `first` + 3
    TUNE = 4194304; FULL = 16777216; TUNE_SEED = 11; SEEDS = 3
}
FNR == NR {
    if (/^[a-z]/ && (only == "" || index("," only ",", "," $1 ","))) {
        arms[++arm_count] = $1
        shape[$1] = $2 " " $3 " " $4 " " $5
    }
    next
}
value($0, "kind") == "run" && value($0, "setup") == setup {
    found = value($0, "diverged") == "true" ? 1e9 : value($0, "valid")
    loss[value($0, "arm"), value($0, "tokens"), value($0, "lr"), value($0, "seed")] = found + 0
}
END {
    for (i = 1; i <= tried && stage != "full"; i++)
        for (a = 1; a <= arm_count; a++)
            waiting[arms[a]] += say(arms[a], TUNE, rates[order[i]], TUNE_SEED)
    for (a = 1; a <= arm_count; a++) {
        arm = arms[a]
        for (i = 1; i <= tried; i++)
            if (!((arm, TUNE, rates[order[i]], TUNE_SEED) in loss))
                waiting[arm] = 1
        if (waiting[arm])
            continue
        for (low = first; low > 1 && (arm, TUNE, rates[low - 1], TUNE_SEED) in loss; low--)
            ;
        for (high = first; high < count && (arm, TUNE, rates[high + 1], TUNE_SEED) in loss; high++)
            ;
        best[arm] = low
        for (i = low; i <= high; i++)
            if (tuned(arm, i) < tuned(arm, best[arm]))
                best[arm] = i
        beyond = best[arm] == low ? low - 1 : best[arm] == high ? high + 1 : 0
        if (beyond >= 1 && beyond <= count) {
            if (stage != "full")
                say(arm, TUNE, rates[beyond], TUNE_SEED)
            delete best[arm]
        }
    }
    for (neighbour = 0; neighbour <= 1 && stage != "tune"; neighbour++)
        for (seed = 1; seed <= SEEDS; seed++)
            for (a = 1; a <= arm_count; a++)
                if (arms[a] in best) {
                    at = best[arms[a]]
                    if (neighbour && at == 1)
                        at++
                    else if (neighbour && at == count)
                        at--
                    else if (neighbour)
                        at += tuned(arms[a], at - 1) < tuned(arms[a], at + 1) ? -1 : 1
                    say(arms[a], FULL, rates[at], seed)
                }
}
