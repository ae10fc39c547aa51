# ReTool in two stages, for any size of Qwen2.5; source it, do not run it. The scripts of each size set RUNS and MODEL.

# retool SIZE [overrides of the DAPO run]: data, cold start, DAPO, curves. Repeating it skips finished stages and resumes an
# interrupted one. To train again, remove the directories of the stage.
retool() {
    local size="$1" data
    shift
    require_environment
    require "$MODEL"
    say "data"
    for data in math_17k_retool retool_sft aime_2024 aime_2025; do prepare_dataset "$data" "dataset/$data.parquet"; done
    say "cold start"
    run_stage sft cold_start "sft_qwen25_${size}_retool" "$MODEL"
    local cold_start="$RUN" start
    start="$(newest_checkpoint "$cold_start")"
    say "reinforcement learning"
    run_stage train dapo "dapo_qwen25_${size}_retool" "$start" "$@"
    say "report"
    rl report "$RUN" --cold-start "$cold_start"
}
