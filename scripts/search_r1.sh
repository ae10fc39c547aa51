# Search-R1, for any size of Qwen2.5; source it, do not run it. The scripts of each size set RUNS and MODEL.

# search_r1 SIZE [overrides of the run]: data, GRPO, curves. Repeating it resumes an interrupted run. To train again, remove
# the run's directories.
search_r1() {
    local size="$1"
    shift
    require_environment
    require "$MODEL"
    say "data"
    prepare_dataset search_r1 dataset/search_r1.parquet
    prepare_dataset search_r1 dataset/search_r1_test.parquet input=dataset/nq_hotpotqa_test.parquet
    say "reinforcement learning"
    run_stage train grpo "grpo_qwen25_${size}_search_r1" "$MODEL" "$@"
    say "report"
    rl report "$RUN"
}
