rule phantom_project:
    output:
        str(MADE.phantom),
    log:
        "<logs>/phantom.log",
    benchmark:
        "<benchmarks>/phantom.tsv"
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(60),
    params:
        settings=SETTINGS,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        options=flow.config.phantom.model_dump_json(),
    shell:
        "tomoscout phantom {params.folder:q} --config {params.settings:q} > {log:q} 2>&1"


rule phantom:
    input:
        str(MADE.phantom),
    localrule: True
