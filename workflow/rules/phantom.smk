rule make_phantom:
    output:
        "<results>/phantom/copick.json",
    log:
        "<logs>/phantom.log",
    benchmark:
        "<benchmarks>/phantom.tsv"
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(60),
    params:
        settings=flow.settings,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        options=flow.config.phantom.model_dump_json(),
    shell:
        "tomoscout phantom {params.folder:q} --config {params.settings:q} > {log:q} 2>&1"


rule phantom:
    input:
        "<results>/phantom/copick.json",
    localrule: True
