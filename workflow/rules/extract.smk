rule extract_runs:
    input:
        files(lambda wildcards: batch_files(LOCALIZED, flow.localized_before(wildcards.batch))),
    output:
        f"{EXTRACTED}/batch-{{batch}}.json",
    log:
        "<logs>/extract/{batch}.log",
    benchmark:
        "<benchmarks>/extract/{batch}.tsv"
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
        depends_on=depends_on("extract"),
    shell:
        "tomoscout extract --config {params.settings:q} --inventory {params.inventory:q}"
        " --batch {wildcards.batch} --output {output:q} > {log:q} 2>&1"


rule extract:
    input:
        files(lambda wildcards: batch_files(EXTRACTED, flow.extracted_batches())),
    localrule: True
