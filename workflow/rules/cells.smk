# Instances of cells in images. Snakemake compares the annotated images themselves; a division that comes out as it was
# trains nothing again.


CHECKED, DIVISION = str(MADE.checked_annotations), str(MADE.cell_division)
CELL_MODEL = str(MADE.model(flow.config.cells.train.name))
SEGMENTING_MODEL = guarded(flow.segmenting_cell_model)("<results>")
INSTANCES = str(MADE.instances(Path(SEGMENTING_MODEL).name))
GPU_FOR_CELLS = int(flow.config.cells.train.computes_on != "cpu")
# The environment of stardist computes on the CPU alone.
GPU_FOR_SEGMENTING_CELLS = int(flow.config.cells.segment.device != "cpu" and flow.cell_group != "stardist")


rule phantom_cell_images:
    output:
        annotations=directory(str(MADE.annotations)),
        images=directory(str(MADE.images_of_cells)),
    log:
        "<logs>/cells/phantom.log",
    benchmark:
        "<benchmarks>/cells/phantom.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(10),
    shell:
        "tomoscout phantom-cells {output.annotations:q} --images-alone {output.images:q} > {log:q} 2>&1"


rule check_annotated_images:
    input:
        files(lambda wildcards: flow.annotation_files()),
    output:
        report(
            CHECKED,
            category="Cells",
            caption="../report/cells_check.rst",
            labels={"what": "Annotated images"},
        ),
    log:
        "<logs>/cells/check.log",
    benchmark:
        "<benchmarks>/cells/check.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(120),
    params:
        settings=SETTINGS,
        depends_on=guarded(lambda wildcards: flow.depends_on_cells("check_annotations")),
    shell:
        "tomoscout check-annotations --config {params.settings:q} --output {output:q} 2>&1 | tee {log:q}"


rule divide_cells:
    input:
        files(lambda wildcards: flow.annotation_files()),
    output:
        DIVISION,
    log:
        "<logs>/cells/divide.log",
    benchmark:
        "<benchmarks>/cells/divide.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(2000),
        runtime=minutes(60),
    params:
        settings=SETTINGS,
        depends_on=guarded(lambda wildcards: flow.depends_on_cells("divide_cells")),
    shell:
        "tomoscout divide-cells --config {params.settings:q} --output {output:q} 2>&1 | tee {log:q}"


rule train_cell_model:
    input:
        division=DIVISION,
        base=whole(flow.cell_base_files()),
    output:
        report(
            f"{CELL_MODEL}/history.png",
            category="Cells",
            caption="../report/history.rst",
            labels={"what": "Training"},
        ),
        f"{CELL_MODEL}/metrics.csv",
        f"{CELL_MODEL}/results.json",
        f"{CELL_MODEL}/{flow.cell_weights}",
        model=f"{CELL_MODEL}/model.yaml",
    log:
        "<logs>/cells/train.log",
    benchmark:
        "<benchmarks>/cells/train.tsv"
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    threads: 8
    resources:
        gpu=GPU_FOR_CELLS,
        mem_mb=megabytes(16000),
        runtime=minutes(24 * 60),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, output: os.path.dirname(output.model),
        depends_on=flow.depends_on_cells("train_cells"),
    # As in train.smk: shell and tee wait for the checkpoint.
    shell:
        "trap : INT TERM USR1;"
        " tomoscout train-cells --config {params.settings:q} --division {input.division:q}"
        " --model {params.folder:q} --threads {threads} 2>&1"
        " | (trap '' INT TERM USR1; exec tee {log:q})"


rule evaluate_cell_model:
    input:
        division=DIVISION,
        model=f"{CELL_MODEL}/model.yaml",
    output:
        scores=str(MADE.cell_scores(flow.config.cells.train.name)),
    log:
        "<logs>/cells/evaluate.log",
    benchmark:
        "<benchmarks>/cells/evaluate.tsv"
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    threads: 4
    resources:
        gpu=GPU_FOR_SEGMENTING_CELLS,
        mem_mb=megabytes(8000),
        runtime=minutes(120),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, input: os.path.dirname(input.model),
        depends_on=flow.depends_on_cells("evaluate_cells"),
    shell:
        "tomoscout evaluate-cells --config {params.settings:q} --division {input.division:q}"
        " --model {params.folder:q} --output {output:q} --threads {threads} 2>&1 | tee {log:q}"


rule segment_cell_images:
    input:
        files(lambda wildcards: flow.images_of_cells()),
        model=f"{SEGMENTING_MODEL}/model.yaml",
    output:
        str(MADE.segmented_cells(Path(SEGMENTING_MODEL).name)),
    log:
        "<logs>/cells/segment.log",
    benchmark:
        "<benchmarks>/cells/segment.tsv"
    conda:
        ENVIRONMENTS[flow.cell_group]
    container:
        IMAGES[flow.cell_group]
    threads: 4
    resources:
        gpu=GPU_FOR_SEGMENTING_CELLS,
        mem_mb=megabytes(16000),
        runtime=minutes(12 * 60),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, input: os.path.dirname(input.model),
        depends_on=flow.depends_on_cells("segment_cells"),
    shell:
        "tomoscout segment-cells --config {params.settings:q} --model {params.folder:q}"
        " --output {output:q} --threads {threads} 2>&1 | tee {log:q}"


rule segment_instances_runs:
    input:
        model=f"{SEGMENTING_MODEL}/model.yaml",
    output:
        f"{INSTANCES}/batch-{{batch}}.json",
    log:
        "<logs>/segment_instances/{batch}.log",
    benchmark:
        "<benchmarks>/segment_instances/{batch}.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    threads: 4
    resources:
        gpu=GPU_FOR_SEGMENTING_CELLS,
        mem_mb=megabytes(16000),
        runtime=minutes(4 * 60),
    params:
        settings=SETTINGS,
        inventory=INVENTORY,
        folder=lambda wildcards, input: os.path.dirname(input.model),
        depends_on=depends_on("segment_instances"),
    shell:
        "tomoscout segment-instances --config {params.settings:q} --inventory {params.inventory:q}"
        " --model {params.folder:q} --threads {threads} --batch {wildcards.batch} --output {output:q} > {log:q} 2>&1"


rule export_cell_model:
    input:
        model=f"{SEGMENTING_MODEL}/model.yaml",
    output:
        str(MADE.exported_cell_model(Path(SEGMENTING_MODEL).name)),
    log:
        "<logs>/cells/export.log",
    benchmark:
        "<benchmarks>/cells/export.tsv"
    conda:
        ENVIRONMENTS["network"]
    container:
        IMAGES["network"]
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(20),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, input: os.path.dirname(input.model),
        depends_on=flow.depends_on_cells("export_cells"),
    shell:
        "tomoscout export-cells --config {params.settings:q} --model {params.folder:q} --output {output:q} 2>&1 | tee {log:q}"


rule phantom_cells:
    input:
        rules.phantom_cell_images.output,
    localrule: True


rule check_annotations:
    input:
        CHECKED,
    localrule: True


rule split_cells:
    input:
        DIVISION,
    localrule: True


rule train_cells:
    input:
        f"{CELL_MODEL}/model.yaml",
    localrule: True


rule evaluate_cells:
    input:
        rules.evaluate_cell_model.output,
    localrule: True


rule segment_cells:
    input:
        rules.segment_cell_images.output,
    localrule: True


rule segment_instances:
    input:
        files(lambda wildcards: batch_files(INSTANCES, flow.instance_batches())),
    localrule: True


rule export_cells:
    input:
        rules.export_cell_model.output,
    localrule: True


rule cells:
    input:
        CHECKED,
        rules.evaluate_cell_model.output,
        rules.segment_cell_images.output if flow.config.cells.segment.images else [],
        rules.segment_instances.input if flow.config.cells.segment.tomogram else [],
    localrule: True
