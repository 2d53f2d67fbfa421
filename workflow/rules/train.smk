# What the training depends on stands in its params, the runs of the split among it. Snakemake does not look at
# params of jobs behind `ancient` inputs that are made again, so the targets are ordinary inputs: where one is new
# but none of those that train, the training finds its last checkpoint complete and writes the same model at once.


# One file for many: Snakemake compares every job that waits for the model with all inputs of the training.
rule gather_targets:
    input:
        guarded(lambda wildcards: batch_files(TARGETS, flow.training_batches())),
    output:
        touch(f"{MODEL}/targets.made"),
    localrule: True


rule train_model:
    input:
        f"{MODEL}/targets.made",
    output:
        report(
            f"{MODEL}/history.png",
            category="Models",
            caption="../report/history.rst",
            labels={"model": flow.config.train.name, "what": "Training"},
        ),
        metrics=f"{MODEL}/metrics.csv",
        results=f"{MODEL}/results.json",
        weights=f"{MODEL}/weights.safetensors",
        model=f"{MODEL}/model.yaml",
    log:
        f"<logs>/train/{flow.config.train.name}.log",
    benchmark:
        f"<benchmarks>/train/{flow.config.train.name}.tsv"
    threads: 8
    resources:
        gpu=GPU_FOR_TRAINING,
        mem_mb=megabytes(32000),
        runtime=minutes(24 * 60),
    params:
        settings=flow.settings,
        inventory=flow.inventory,
        folder=lambda wildcards, output: os.path.dirname(output.model),
        depends_on=guarded(lambda wildcards: flow.train_inputs()),
    shell:
        "tomoscout train --config {params.settings:q} --inventory {params.inventory:q}"
        " --model {params.folder:q} --threads {threads} 2>&1 | tee {log:q}"


rule train:
    input:
        rules.train_model.output.model,
        SPLIT,
    localrule: True
