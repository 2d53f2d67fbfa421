EXPORTED = str(MADE.export("{form}"))
DOWNLOADED = str(MADE.download("{source}"))
IMPORTED_TOMOGRAMS = str(MADE.import_tomograms("{source}"))
IMPORTED_PICKS = str(MADE.import_picks("{source}"))


rule export_files:
    input:
        localized=files(lambda wildcards: batch_files(LOCALIZED, flow.exported_batches())),
        extracted=files(lambda wildcards: batch_files(EXTRACTED, flow.extractions_exported())),
        sizes=whole([flow.config.export.tomograms_star]) if flow.config.export.tomograms_star else [],
    output:
        EXPORTED,
    log:
        "<logs>/export/{form}.log",
    benchmark:
        "<benchmarks>/export/{form}.tsv"
    wildcard_constraints:
        form=r"\w+",
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
        localized=lambda wildcards, input: options("--localized", folders_of(input.localized[:1])),
        depends_on=depends_on("export"),
    shell:
        "tomoscout export --config {params.settings:q} --inventory {params.inventory:q}"
        " --format {wildcards.form} {params.localized:q} --output {output:q} > {log:q} 2>&1"


rule import_tomogram_files:
    input:
        files(lambda wildcards: flow.imported_tomogram_files(wildcards.source)),
    output:
        IMPORTED_TOMOGRAMS,
    log:
        "<logs>/import_tomograms/{source}.log",
    benchmark:
        "<benchmarks>/import_tomograms/{source}.tsv"
    wildcard_constraints:
        source="|".join(map(re.escape, flow.config.import_tomograms)) or r"(?!)",
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    resources:
        mem_mb=megabytes(4000),
        runtime=minutes(8 * 60),
    params:
        settings=SETTINGS,
        depends_on=guarded(lambda wildcards: flow.import_depends_on("import_tomograms", wildcards.source)),
    shell:
        "tomoscout import-tomograms --config {params.settings:q} --name {wildcards.source:q} --output {output:q}"
        " > {log:q} 2>&1"


# Where Snakemake runs: computing nodes often have no way to the internet.
rule download_files:
    input:
        lambda wildcards: flow.config.download[wildcards.source].source,
    output:
        DOWNLOADED,
    log:
        "<logs>/download/{source}.log",
    benchmark:
        "<benchmarks>/download/{source}.tsv"
    wildcard_constraints:
        source="|".join(map(re.escape, flow.config.download)) or r"(?!)",
    localrule: True
    conda:
        ENVIRONMENTS["light"]
    container:
        IMAGES["light"]
    params:
        settings=SETTINGS,
        depends_on=guarded(lambda wildcards: flow.import_depends_on("download", wildcards.source)),
    shell:
        "tomoscout download --config {params.settings:q} --name {wildcards.source:q} --output {output:q}"
        " > {log:q} 2>&1"


rule import_picks_files:
    input:
        files(lambda wildcards: flow.imported_pick_files(wildcards.source)),
    output:
        IMPORTED_PICKS,
    log:
        "<logs>/import_picks/{source}.log",
    benchmark:
        "<benchmarks>/import_picks/{source}.tsv"
    wildcard_constraints:
        source="|".join(map(re.escape, flow.config.import_picks)) or r"(?!)",
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
        depends_on=depends_on("import_picks"),
    shell:
        "tomoscout import-picks --config {params.settings:q} --inventory {params.inventory:q}"
        " --name {wildcards.source:q} --output {output:q} > {log:q} 2>&1"


rule export:
    input:
        [str(MADE.export(form)) for form in flow.config.export.formats],
    localrule: True


rule import_tomograms:
    input:
        files(lambda wildcards: [str(flow.results.import_tomograms(name)) for name in flow.imports("import_tomograms")]),
    localrule: True


rule import:
    input:
        files(lambda wildcards: flow.all_imports()),
    localrule: True


rule import_picks:
    input:
        files(lambda wildcards: [str(flow.results.import_picks(name)) for name in flow.imports("import_picks")]),
    localrule: True


rule download:
    input:
        files(lambda wildcards: [str(flow.results.download(name)) for name in flow.imports("download")]),
    localrule: True
