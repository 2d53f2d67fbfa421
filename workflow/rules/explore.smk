# The study is the graph: a proposal waits for the proposal before it and for the last result that it is told, and so,
# through them, for all earlier ones. What is there is never made again (`ancient`): settings or data that would
# change it have a folder of their own.


# Folders of studies of cells, which have rules of their own.
CELL_STUDIES = flow.cell_search.folders if flow.config.cells.annotations else r"(?!)"


wildcard_constraints:
    study=rf"(?!{CELL_STUDIES}/)[^/]+",
    trial=r"\d\d\d\d+",


rule start_study:
    output:
        f"{STUDY}/study.json",
    log:
        "<logs>/explore/{study}/study.log",
    localrule: True
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "tomoscout explore start --config {params.settings:q} --inventory {params.inventory:q}"
        " --study {params.folder:q} > {log:q} 2>&1"


# As for a training.
rule gather_study_targets:
    input:
        files(lambda wildcards: batch_files(TARGETS, flow.study_batches())),
    output:
        f"{STUDY}/targets.made",
    log:
        "<logs>/explore/{study}/targets.log",
    wildcard_constraints:
        study=all_but(flow.gathered_studies()),
    localrule: True
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    params:
        targets=guarded(lambda wildcards: flow.training_targets(flow.config.train.name)),
    shell:
        "printf %s {params.targets:q} > {output:q} 2> {log:q}"


rule suggest:
    input:
        unpack(before_trial(flow.search)),
        study=ancient(f"{STUDY}/study.json"),
    output:
        # Not removed before the job: what was asked once stays.
        update(f"{STUDY}/{{trial}}/ask.json"),
    log:
        "<logs>/explore/{study}/{trial}.ask.log",
    localrule: True
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        folder=lambda wildcards, input: os.path.dirname(input.study),
    shell:
        "tomoscout explore suggest {wildcards.trial} --config {params.settings:q}"
        " --inventory {params.inventory:q} --study {params.folder:q} > {log:q} 2>&1"


rule trial:
    input:
        unpack(before_trial(flow.search)),
        ask=ancient(f"{STUDY}/{{trial}}/ask.json"),
        targets=ancient(f"{STUDY}/targets.made"),
    output:
        update(f"{STUDY}/{{trial}}/result.json"),
    log:
        "<logs>/explore/{study}/{trial}.log",
    benchmark:
        "<benchmarks>/explore/{study}/{trial}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    threads: flow.config.explore.threads
    resources:
        gpu=GPU_FOR_TRAINING,
        mem_mb=megabytes(32000),
        runtime=minutes(8 * 60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        folder=lambda wildcards, input: os.path.dirname(input.targets),
    # As in train.smk: shell and tee wait for the checkpoint.
    shell:
        "trap : INT TERM USR1;"
        " tomoscout trial run {wildcards.trial} --config {params.settings:q}"
        " --inventory {params.inventory:q} --study {params.folder:q} 2>&1"
        " | (trap '' INT TERM USR1; exec tee {log:q})"


rule summarise_study:
    input:
        study_files(flow.search, *(f"{trial}/result.json" for trial in flow.search.trials())),
    output:
        report(
            f"{STUDY}/report.html",
            category="Exploration",
            subcategory="Report",
            caption="../report/exploration.rst",
            labels={"study": "{study}", "what": "Report"},
        ),
        report(
            directory(f"{STUDY}/report"),
            patterns=["{kind}/{figure}.svg"],
            category="Exploration",
            subcategory="Figures",
            caption="../report/exploration_figure.rst",
            labels={"shows": "{kind}", "figure": "{figure}"},
        ),
        f"{STUDY}/trials.csv",
        [f"{STUDY}/{name}/model.yaml" for name in flow.search.best_names],
        [f"{STUDY}/{name}/weights.safetensors" for name in flow.search.best_names],
    log:
        "<logs>/explore/{study}/summary.log",
    benchmark:
        "<benchmarks>/explore/{study}/summary.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(60),
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        trials=flow.config.explore.trials,
        top=flow.config.explore.top,
        title=flow.config.report.title,
    shell:
        "tomoscout explore summarise {params.folder:q} --trials {params.trials} --top {params.top}"
        " --title {params.title:q} 2>&1 | tee {log:q}"


# Trials that write to a server do so while they run; a file they would wait for each other to write to.
rule track_study:
    input:
        f"{STUDY}/trials.csv",
    output:
        str(MADE.tracked_study("{study}")),
    log:
        "<logs>/tracking/{study}.log",
    benchmark:
        "<benchmarks>/tracking/{study}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(60),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, input: os.path.dirname(input[0]),
        depends_on=flow.config.tracking.model_dump_json(),
    shell:
        "tomoscout explore track {params.folder:q} --config {params.settings:q} --output {output:q} > {log:q} 2>&1"


rule explore:
    input:
        study_files(flow.search, "report.html", "trials.csv"),
        files(lambda wildcards: model_files(flow.search.best_models())),
        files(lambda wildcards: flow.search.recorded()),
        SPLIT,
    localrule: True
