# The exploration of instances of cells, as explore.smk has it for picking. The name of a study follows from its options
# alone, and it goes on with the images that it was started with. Once there is study.json no rule makes it, and the
# division is no input of a trial: behind one that is made again Snakemake would do all trials again.


rule start_cell_study:
    input:
        division=DIVISION,
    output:
        f"{STUDY}/study.json",
    log:
        "<logs>/explore/{study}/study.log",
    wildcard_constraints:
        study=all_but(flow.started_studies(), CELL_STUDIES),
    localrule: True
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    params:
        settings=SETTINGS,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        "tomoscout explore start --config {params.settings:q} --division {input.division:q}"
        " --study {params.folder:q} > {log:q} 2>&1"


# Starting it again says whether the images are the same. Where they are not, this fails each time anew.
rule check_cell_study:
    input:
        division=DIVISION,
        study=ancient(f"{STUDY}/study.json"),
    output:
        touch(f"{STUDY}/images.checked"),
    log:
        "<logs>/explore/{study}/images.log",
    wildcard_constraints:
        study=CELL_STUDIES,
    localrule: True
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    params:
        settings=SETTINGS,
        folder=lambda wildcards, input: os.path.dirname(input.study),
    shell:
        "tomoscout explore start --config {params.settings:q} --division {input.division:q}"
        " --study {params.folder:q} > {log:q} 2>&1"


rule suggest_cell_trial:
    input:
        unpack(before_trial(flow.cell_search)),
        study=ancient(f"{STUDY}/study.json"),
    output:
        # Not removed before the job: what was asked once stays.
        update(f"{STUDY}/{{trial}}/ask.json"),
    log:
        "<logs>/explore/{study}/{trial}.ask.log",
    wildcard_constraints:
        study=CELL_STUDIES,
    localrule: True
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    params:
        settings=SETTINGS,
        division=str(flow.results.cell_division),
        folder=lambda wildcards, input: os.path.dirname(input.study),
    shell:
        "tomoscout explore suggest {wildcards.trial} --config {params.settings:q}"
        " --division {params.division:q} --study {params.folder:q} > {log:q} 2>&1"


rule cell_trial:
    input:
        unpack(before_trial(flow.cell_search)),
        study=ancient(f"{STUDY}/study.json"),
        ask=ancient(f"{STUDY}/{{trial}}/ask.json"),
    output:
        update(f"{STUDY}/{{trial}}/result.json"),
    log:
        "<logs>/explore/{study}/{trial}.log",
    benchmark:
        "<benchmarks>/explore/{study}/{trial}.tsv"
    wildcard_constraints:
        study=CELL_STUDIES,
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    threads: flow.config.cells.explore.threads
    resources:
        gpu=GPU_FOR_CELLS,
        mem_mb=megabytes(16000),
        runtime=minutes(8 * 60),
    params:
        settings=SETTINGS,
        division=str(flow.results.cell_division),
        folder=lambda wildcards, input: os.path.dirname(input.study),
    # As in train.smk: shell and tee wait for the checkpoint.
    shell:
        "trap : INT TERM USR1;"
        " tomoscout trial run {wildcards.trial} --config {params.settings:q}"
        " --division {params.division:q} --study {params.folder:q} 2>&1"
        " | (trap '' INT TERM USR1; exec tee {log:q})"


use rule summarise_study as summarise_cell_study with:
    input:
        study_files(flow.cell_search, *(f"{trial}/result.json" for trial in flow.cell_search.trials())),
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
        [f"{STUDY}/{name}/model.yaml" for name in flow.cell_search.best_names],
        [f"{STUDY}/{name}/weights.safetensors" for name in flow.cell_search.best_names],
    wildcard_constraints:
        study=CELL_STUDIES,
    params:
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        trials=flow.config.cells.explore.trials,
        top=flow.config.cells.explore.top,
        title=flow.config.report.title,


rule explore_cells:
    input:
        study_files(flow.cell_search, "images.checked", "report.html", "trials.csv"),
        files(lambda wildcards: model_files(flow.cell_search.best_models())),
        files(lambda wildcards: flow.cell_search.recorded()),
    localrule: True
