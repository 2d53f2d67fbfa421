# A training waits for the targets of its own runs, where some of them are to be made: then this rule makes targets.made
# again. Otherwise no rule does, and targets.made is a file like any other. For a batch holds runs that others use, too,
# and whatever waits for a batch would be done again with it. (`ancient` would not do: behind such an input that is made
# again Snakemake does not look at params, of no job that follows.)
rule gather_targets:
    input:
        files(lambda wildcards: batch_files(TARGETS, flow.training_batches(wildcards.model))),
    output:
        f"{MODEL}/targets.made",
    log:
        "<logs>/targets/{model}.log",
    wildcard_constraints:
        model=all_but(flow.gathered_models(), flow.model_names),
    localrule: True
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    params:
        targets=guarded(lambda wildcards: flow.training_targets(wildcards.model)),
    shell:
        "printf %s {params.targets:q} > {output:q} 2> {log:q}"


rule train_model:
    input:
        targets=f"{MODEL}/targets.made",
        base=whole(flow.base_files()),
    output:
        report(
            f"{MODEL}/history.png",
            category="Models",
            caption="../report/history.rst",
            labels={"model": "{model}", "what": "Training"},
        ),
        metrics=f"{MODEL}/metrics.csv",
        results=f"{MODEL}/results.json",
        weights=f"{MODEL}/weights.safetensors",
        model=f"{MODEL}/model.yaml",
    log:
        "<logs>/train/{model}.log",
    benchmark:
        "<benchmarks>/train/{model}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    threads: 8
    resources:
        gpu=GPU_FOR_TRAINING,
        mem_mb=megabytes(32000),
        runtime=minutes(24 * 60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        folder=lambda wildcards, output: os.path.dirname(output.model),
        runs=guarded(lambda wildcards: flow.member_options(wildcards.model)),
        depends_on=depends_on("train"),
    # What tells a job to stop is sent to all of its processes: shell and tee wait for the training's checkpoint, which
    # a broken pipe would end.
    shell:
        "trap : INT TERM USR1;"
        " tomoscout train --config {params.settings:q} --inventory {params.inventory:q}"
        " --model {params.folder:q} {params.runs:q} --threads {threads} 2>&1"
        " | (trap '' INT TERM USR1; exec tee {log:q})"


# A file of this model may be the base of the training.
rule pretrain_model:
    output:
        report(
            f"{PRETRAINED}/history.png",
            category="Models",
            caption="../report/history.rst",
            labels={"model": flow.config.pretrain.name, "what": "Training"},
        ),
        metrics=f"{PRETRAINED}/metrics.csv",
        results=f"{PRETRAINED}/results.json",
        weights=f"{PRETRAINED}/weights.safetensors",
        model=f"{PRETRAINED}/model.yaml",
    log:
        f"<logs>/pretrain/{flow.config.pretrain.name}.log",
    benchmark:
        f"<benchmarks>/pretrain/{flow.config.pretrain.name}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    threads: 8
    resources:
        gpu=GPU_FOR_TRAINING,
        mem_mb=megabytes(32000),
        runtime=minutes(24 * 60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        folder=lambda wildcards, output: os.path.dirname(output.model),
        depends_on=depends_on("pretrain"),
    # As in train_model.
    shell:
        "trap : INT TERM USR1;"
        " tomoscout pretrain --config {params.settings:q} --inventory {params.inventory:q}"
        " --model {params.folder:q} --threads {threads} 2>&1"
        " | (trap '' INT TERM USR1; exec tee {log:q})"


rule compare_folds:
    input:
        files(lambda wildcards: [f"{folder}/results.json" for folder in flow.fold_models()]),
    output:
        table=report(
            FOLDS,
            category="Models",
            caption="../report/folds.rst",
            labels={"model": flow.config.train.name, "what": "Cross-validation"},
        ),
        rows=str(Path(FOLDS).with_suffix(".json")),
    log:
        f"<logs>/compare_folds/{flow.config.train.name}.log",
    benchmark:
        f"<benchmarks>/compare_folds/{flow.config.train.name}.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(1000),
        runtime=minutes(10),
    params:
        folders=lambda wildcards, input: folders_of(input),
    shell:
        "tomoscout compare-folds {params.folders:q} --output {output.table:q} 2>&1 | tee {log:q}"


rule learning_curve_table:
    input:
        files(lambda wildcards: [f"{folder}/results.json" for folder in flow.curve_models()]),
    output:
        report(
            str(CURVE.with_suffix(".svg")),
            category="Models",
            caption="../report/learning_curve.rst",
            labels={"model": flow.config.train.name, "what": "Learning curve"},
        ),
        table=report(
            str(CURVE),
            category="Models",
            caption="../report/learning_curve.rst",
            labels={"model": flow.config.train.name, "what": "Learning curve, table"},
        ),
        rows=str(CURVE.with_suffix(".json")),
    log:
        f"<logs>/learning_curve/{flow.config.train.name}.log",
    benchmark:
        f"<benchmarks>/learning_curve/{flow.config.train.name}.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(1000),
        runtime=minutes(10),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        depends_on=depends_on("learning_curve"),
    shell:
        "tomoscout learning-curve --config {params.settings:q} --inventory {params.inventory:q}"
        " --output {output.table:q} 2>&1 | tee {log:q}"


# Completes what a training could not record while it ran. Not part of `all`: a server that is away fails nothing.
rule track_model:
    input:
        f"{MODEL}/model.yaml",
    output:
        str(MADE.tracked_model("{model}")),
    log:
        "<logs>/tracking/{model}.log",
    benchmark:
        "<benchmarks>/tracking/{model}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(30),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, input: os.path.dirname(input[0]),
        depends_on=flow.config.tracking.model_dump_json(),
    shell:
        "tomoscout track {params.folder:q} --config {params.settings:q} --output {output:q} > {log:q} 2>&1"


rule train:
    input:
        f"{TRAINED}/model.yaml",
        SPLIT,
    localrule: True


rule pretrain:
    input:
        f"{PRETRAINED}/model.yaml",
    localrule: True


rule finetune:
    input:
        files(lambda wildcards: model_files([flow.fine_tuned_model()])),
        SPLIT,
    localrule: True


rule cross_validate:
    input:
        rules.compare_folds.output,
        files(lambda wildcards: model_files(flow.fold_models())),
        SPLIT,
    localrule: True


rule learning_curve:
    input:
        rules.learning_curve_table.output,
        SPLIT,
    localrule: True


rule track:
    input:
        [str(MADE.tracked_model(model)) for model in flow.tracked_models()],
        [str(MADE.tracked_study(study)) for study in flow.tracked_studies()],
    localrule: True
