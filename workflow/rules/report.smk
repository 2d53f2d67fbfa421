FIGURES = str(MADE.report(flow.config.session).with_suffix(""))


rule report_page:
    input:
        models=files(lambda wildcards: model_files(flow.picking_models)),
        scores=[f"{SCORES}/scores.json"] if flow.config.is_scored else [],
        split=[SPLIT] if flow.config.learns else [],
        targets=files(lambda wildcards: batch_files(TARGETS, flow.batches("overlays"))) if flow.config.learns else [],
        pictures=files(lambda wildcards: batch_files(OVERLAYS, flow.batches("overlays"))) if flow.config.learns else [],
        localized=files(lambda wildcards: batch_files(LOCALIZED, flow.batches("report"))),
    output:
        page=report(
            REPORT,
            category="Report",
            caption="../report/page.rst",
            labels={"model": flow.config.session, "what": "Report"},
        ),
        figures=report(
            directory(FIGURES),
            patterns=["{kind}/{figure}.svg", "{kind}/{figure}.png"],
            category="Figures",
            subcategory="{kind}",
            caption="../report/figure.rst",
            labels={"figure": "{figure}"},
        ),
    log:
        f"<logs>/report/{flow.config.session}.log",
    benchmark:
        f"<benchmarks>/report/{flow.config.session}.tsv"
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
        model=lambda wildcards, input: options("--model", folders_of(input.models[:1])),
        localized=lambda wildcards, input: os.path.dirname(input.localized[0]),
        scores=lambda wildcards, input: options("--scores", folders_of(input.scores)),
        split=lambda wildcards, input: options("--split", input.split),
        targets=lambda wildcards, input: options("--targets", folders_of(input.targets[:1])),
        pictures=lambda wildcards, input: options("--pictures", folders_of(input.pictures[:1])),
        # Read, but no input: what was measured differs from run to run.
        benchmarks=BENCHMARKS,
        depends_on=depends_on("report"),
    shell:
        "tomoscout report --config {params.settings:q} --inventory {params.inventory:q}"
        " {params.model:q} --localized {params.localized:q} {params.scores:q} {params.split:q}"
        " {params.targets:q} {params.pictures:q} --benchmarks {params.benchmarks:q}"
        " --output {output.page:q} > {log:q} 2>&1"


rule report:
    input:
        REPORT,
        files(lambda wildcards: batch_files(LOCALIZED, flow.batches("localize"))),
    localrule: True
