IMPORTED = str(MADE.model("{imported}"))
PREDICTED = f"{SEGMENTED}/batch-{{batch}}.json"


# A model that octopi trained becomes a model folder before it is applied.
rule import_model:
    input:
        files(lambda wildcards: flow.imported_files(wildcards.imported)),
    output:
        weights=f"{IMPORTED}/weights.safetensors",
        model=f"{IMPORTED}/model.yaml",
    log:
        "<logs>/import_model/{imported}.log",
    benchmark:
        "<benchmarks>/import_model/{imported}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    threads: 4
    resources:
        gpu=GPU_FOR_SEGMENTING * flow.config.chooses_thresholds,
        mem_mb=megabytes(16000 if flow.config.chooses_thresholds else 4000),
        runtime=minutes(60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        theirs=lambda wildcards, input: input[0],
        folder=lambda wildcards, output: os.path.dirname(output.model),
        depends_on=depends_on("import_model"),
    shell:
        "tomoscout import-model {params.theirs:q} --config {params.settings:q} --inventory {params.inventory:q}"
        " --model {params.folder:q} --threads {threads} > {log:q} 2>&1"


rule segment_runs:
    input:
        models=files(lambda wildcards: model_files(flow.applied_models)),
    output:
        PREDICTED if flow.config.segment.keep_probabilities else temp(PREDICTED),
    log:
        "<logs>/segment/{batch}.log",
    benchmark:
        "<benchmarks>/segment/{batch}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    threads: 4
    resources:
        gpu=GPU_FOR_SEGMENTING,
        mem_mb=megabytes(round(1024 * flow.config.segment.memory_gb) + 4000),
        runtime=minutes(4 * 60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        models=lambda wildcards, input: options("--model", folders_of(input.models)),
        depends_on=depends_on("segment"),
    shell:
        "tomoscout segment --config {params.settings:q} --inventory {params.inventory:q}"
        " {params.models:q} --threads {threads} --batch {wildcards.batch} --output {output:q} > {log:q} 2>&1"


rule localize_runs:
    input:
        # A segmentation of somebody else's is localised without a model.
        segmented=[] if flow.config.localize.segmentation else [PREDICTED],
        models=files(lambda wildcards: model_files(flow.picking_models)),
    output:
        f"{LOCALIZED}/batch-{{batch}}.json",
    log:
        "<logs>/localize/{batch}.log",
    benchmark:
        "<benchmarks>/localize/{batch}.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(8000),
        runtime=minutes(2 * 60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        models=lambda wildcards, input: options("--model", folders_of(input.models)),
        segmented=lambda wildcards, input: options("--segmented", folders_of(input.segmented)),
        depends_on=depends_on("localize"),
    shell:
        "tomoscout localize --config {params.settings:q} --inventory {params.inventory:q}"
        " {params.models:q} {params.segmented:q}"
        " --batch {wildcards.batch} --output {output:q} > {log:q} 2>&1"


rule evaluate_picks:
    input:
        files(lambda wildcards: batch_files(LOCALIZED, flow.batches("evaluate"))),
        targets=files(lambda wildcards: batch_files(TARGETS, flow.targets_compared())),
        extracted=files(lambda wildcards: batch_files(EXTRACTED, flow.extractions_compared())),
    output:
        scores=f"{SCORES}/scores.json",
        objects=report(
            f"{SCORES}/objects.csv",
            category="Scores",
            caption="../report/scores.rst",
            labels={"model": flow.config.session, "what": "Scores"},
        ),
        runs=f"{SCORES}/runs.csv",
        curves=f"{SCORES}/curves.csv",
        segmentations=[f"{SCORES}/segmentations.csv"] if flow.config.evaluate.segmentations else [],
    log:
        f"<logs>/evaluate/{flow.config.session}.log",
    benchmark:
        f"<benchmarks>/evaluate/{flow.config.session}.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        localized=lambda wildcards, input: os.path.dirname(input[0]),
        folder=lambda wildcards, output: os.path.dirname(output.scores),
        depends_on=depends_on("evaluate"),
    shell:
        "tomoscout evaluate --config {params.settings:q} --inventory {params.inventory:q}"
        " --localized {params.localized:q} --output {params.folder:q} 2>&1 | tee {log:q}"


rule segment:
    input:
        files(lambda wildcards: batch_files(SEGMENTED, flow.batches("segment"))),
    localrule: True


rule localize:
    input:
        files(lambda wildcards: batch_files(LOCALIZED, flow.batches("localize"))),
    localrule: True


rule evaluate:
    input:
        rules.evaluate_picks.output.scores,
    localrule: True
