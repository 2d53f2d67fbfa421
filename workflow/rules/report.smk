rule write_report:
    input:
        scores=f"{SCORES}/scores.json",
        models=files(lambda wildcards: model_files(flow.applied_models())),
        split=SPLIT,
        targets=files(lambda wildcards: batch_files(TARGETS, flow.overlay_batches())),
    output:
        report(
            REPORT,
            category="Report",
            caption="../report/page.rst",
            labels={"model": flow.config.session, "what": "Report"},
        ),
    log:
        f"<logs>/report/{flow.config.session}.log",
    benchmark:
        f"<benchmarks>/report/{flow.config.session}.tsv"
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(60),
    params:
        settings=flow.settings,
        inventory=flow.inventory,
        model=lambda wildcards, input: os.path.dirname(input.models[0]),
        scores=lambda wildcards, input: os.path.dirname(input.scores),
        targets=lambda wildcards, input: os.path.dirname(input.targets[0]),
        depends_on=flow.report_inputs(),
    shell:
        "tomoscout report --config {params.settings:q} --inventory {params.inventory:q}"
        " --model {params.model:q} --scores {params.scores:q} --split {input.split:q}"
        " --targets {params.targets:q} --output {output:q} > {log:q} 2>&1"


rule report:
    input:
        REPORT,
        files(lambda wildcards: batch_files(LOCALIZED, flow.segment_batches())),
    localrule: True
