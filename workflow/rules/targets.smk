rule targets_runs:
    output:
        f"{TARGETS}/batch-{{batch}}.json",
    log:
        "<logs>/targets/{batch}.log",
    benchmark:
        "<benchmarks>/targets/{batch}.tsv"
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
        depends_on=depends_on("targets"),
    shell:
        "tomoscout targets --config {params.settings:q} --inventory {params.inventory:q}"
        " --batch {wildcards.batch} --output {output:q} > {log:q} 2>&1"


rule overlays_runs:
    input:
        f"{TARGETS}/batch-{{batch}}.json",
    output:
        f"{OVERLAYS}/batch-{{batch}}.json",
    log:
        "<logs>/overlays/{batch}.log",
    benchmark:
        "<benchmarks>/overlays/{batch}.tsv"
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
        targets=lambda wildcards, input: os.path.dirname(input[0]),
        depends_on=depends_on("overlays"),
    shell:
        "tomoscout overlays --config {params.settings:q} --inventory {params.inventory:q}"
        " --targets {params.targets:q} --batch {wildcards.batch} --output {output:q} > {log:q} 2>&1"


rule split_runs:
    output:
        report(SPLIT, category="Data", caption="../report/split.rst", labels={"what": "Split"}),
    log:
        "<logs>/split.log",
    benchmark:
        "<benchmarks>/split.tsv"
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
        depends_on=depends_on("split"),
    shell:
        "tomoscout split --config {params.settings:q} --inventory {params.inventory:q}"
        " --output {output:q} > {log:q} 2>&1"


rule targets:
    input:
        files(lambda wildcards: batch_files(TARGETS, flow.batches("targets"))),
        files(lambda wildcards: batch_files(OVERLAYS, flow.batches("overlays"))),
    localrule: True


rule splits:
    input:
        SPLIT,
    localrule: True
