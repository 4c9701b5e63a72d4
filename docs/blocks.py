"""What the generated blocks of README and docs contain. Every function takes a language and the way up to the root."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from typing import Any

import flagattn
from aquila2.cli import config_table
from aquila2.training.options import DataOptions, Options, SourceOptions, dump_options
from bench import asks, report, results, study_numerics
from bench.bars import BUSY, Bar, Verdict
from docs import features as feature_probes
from docs import support as probes
from docs.chinese import BAR_WORDS, ENVIRONMENT_ZH, phrase
from flagattn.environment import ENVIRONMENT
from flagattn.reference import far_mask, keep_mask
from flagattn.testing.conformance.suites import SUITES

# ------------------------------------------------------------------------------------------------------------ the code


def public_functions() -> dict[str, Any]:
    """The public functions of flagattn by name, in the order of `flagattn.__all__`."""
    named = {name: getattr(flagattn, name) for name in flagattn.__all__}
    return {name: value for name, value in named.items() if inspect.isfunction(value)}


def signature_of(name: str, function: Any = None) -> str:
    """`name(arguments)` as Python sees it, without annotations, broken after 100 columns; by default of flagattn's."""
    parameters = inspect.signature(function or getattr(flagattn, name)).parameters.values()
    bare = inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in parameters])
    text = f"{name}{bare}".replace("(-1, -1)", "(-1,\0-1)")  # a pair stays on one line
    lines = textwrap.wrap(text, 100, subsequent_indent=" " * (len(name) + 1), break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def signature(language: str, up: str, name: str) -> str:
    return f"```text\n{signature_of(name)}\n```"


def api_reference(language: str, up: str) -> str:
    """Signature and docstring of every public function."""
    return "\n".join(_section(f"### {name}", name, function, up) for name, function in public_functions().items())


# Modules that programs import by name, and what the reference describes of them; (): all that they list as public.
MODULES: dict[str, tuple[str, ...]] = {
    "flagattn.compat": (),
    "flagattn.compat.flash_attn": (),
    "flagattn.compat.flash_attn.bert_padding": (
        "unpad_input",
        "pad_input",
        "unpad_input_for_concatenated_sequences",
        "index_first_axis",
        "index_put_first_axis",
    ),
    "flagattn.compat.flash_attn.layers.rotary": ("apply_rotary_emb", "apply_rotary_emb_qkv_", "apply_rotary_emb_kv_"),
    "flagattn.compat.flash_attn_3": (),
    "flagattn.compat.flag_attn": (),
    "flagattn.compat.flag_attn.total": ("total_attention",),
    "flagattn.compat.flag_attn.testing": (),
    "flagattn.compat.vllm": (),
    "flagattn.integrations.torch_sdpa": ("enable", "register", "serves"),
    "flagattn.integrations.transformers": ("register", "fuse", "unfuse"),
    "flagattn.reference": (),
}


def module_reference(language: str, up: str) -> str:
    """The same of the modules that stand beside the ops, each below what it says of itself first."""
    parts = []
    for path in MODULES:
        module = importlib.import_module(path)
        parts.append(f"### {path}\n\n{inspect.cleandoc(module.__doc__ or '').splitlines()[0]}\n")
        parts += [_section(f"#### {path}.{name}", name, getattr(module, name), up) for name in described(path)]
    return "\n".join(parts)


def described(path: str) -> list[str]:
    """The names of a module that the reference describes."""
    return list(MODULES[path] or importlib.import_module(path).__all__)


def _section(heading: str, name: str, function: Any, up: str) -> str:
    source = inspect.getsourcefile(inspect.unwrap(function)) or ""
    path = source[source.rindex("flagattn/") :]
    doc = _docstring_as_markdown(inspect.cleandoc(function.__doc__ or ""))
    return f"{heading}\n\n```text\n{signature_of(name, function)}\n```\n\n{doc}\n\n[{path}]({up}{path})\n"


def _docstring_as_markdown(doc: str) -> str:
    """Google-style sections become lists; indented formulas become code."""
    out: list[str] = []
    section = ""
    for line in doc.splitlines():
        bare = line.strip()
        if bare in ("Args:", "Returns:", "Raises:"):
            section = bare
            out += ["", f"**{bare[:-1]}**", ""]
        elif not line.startswith(" "):
            section = ""
            out.append(line)
        elif section in ("Args:", "Raises:") and not line.startswith("     "):
            name, _, text = bare.partition(": ")
            out.append(f"- `{name}`: {text}" if text else f"- {bare}")
        elif section:
            out.append(f"  {bare}" if section != "Returns:" else bare)
        else:
            out += [f"`{bare}`"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))


def environment(language: str, up: str) -> str:
    header = [phrase(word, language) for word in ("variable", "read at", "values", "default", "meaning")]
    lines = []
    for variable in ENVIRONMENT:
        cells = [variable.read_at, variable.values, variable.default, variable.meaning]
        if language == "zh":
            cells = [ENVIRONMENT_ZH.get(cell, cell) for cell in cells]
        lines.append([f"`{variable.name}`", *cells])
    return report.markdown(header, lines)


def configs(language: str, up: str) -> str:
    """The named configurations, as `aquila2 configs` prints them."""
    return config_table()


def options(language: str, up: str) -> str:
    """The options of a training run with their defaults."""
    example = Options(data=DataOptions(sources=[SourceOptions(name="mine", path="texts/")]))
    return f"```yaml\n{dump_options(example).rstrip()}\n```"


def masks(language: str, up: str) -> str:
    """Each mask as rows of queries against columns of keys."""
    causal, window, piecewise = (
        _picture(keep_mask(4, 7, causal=True)),
        _picture(keep_mask(7, 7, window_size=(2, 1))),
        _piecewise_picture(7, 7, 3),
    )
    wide = _picture(keep_mask(7, 4, causal=True))
    blocks = [
        ("causal, Sq 4, Sk 7", causal),
        ("causal, Sq 7, Sk 4", wide),
        ("window (2, 1)", window),
        ("piecewise, threshold 3, causal", piecewise),
    ]
    width = max(len(title) for title, _ in blocks[:-1]) + 5
    height = max(len(lines) for _, lines in blocks)
    rows = ["".join(title.ljust(width) for title, _ in blocks).rstrip()]
    for index in range(height):
        cells = [lines[index] if index < len(lines) else "" for _, lines in blocks]
        rows.append("".join(cell.ljust(width) for cell in cells).rstrip())
    return "```text\n" + "\n".join(rows) + "\n```\n\n" + phrase("mask legend", language)


def _picture(keep: Any) -> list[str]:
    return [" ".join("1" if cell else "0" for cell in row) for row in keep.tolist()]


def _piecewise_picture(seqlen_q: int, seqlen_k: int, threshold: int) -> list[str]:
    keep = keep_mask(seqlen_q, seqlen_k, causal=True).tolist()
    far = far_mask(seqlen_q, seqlen_k, threshold).tolist()
    return [
        " ".join("0" if not kept else "2" if is_far else "1" for kept, is_far in zip(*rows)) for rows in zip(keep, far)
    ]


def essays(language: str, up: str) -> str:
    """A list of the essays beside the index, by their own titles."""
    paths = sorted(path for path in (results.ROOT / "docs/kernels").glob("*.md") if path.name != "README.md")
    titles = [(path.name, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")) for path in paths]
    return "\n".join(f"- [{title}]({name})" for name, title in titles)


def support(language: str, up: str) -> str:
    """What runs where: CPU by calling every op, sm_80 by the list of kernels the build instantiates."""
    header = [
        phrase(w, language)
        for w in ("op", "dtypes", "head dim", "CPU forward", "CPU backward", "sm_80 forward", "sm_80 backward")
    ]
    yes, no = phrase("yes", language), phrase("no", language)
    lines = []
    for row in probes.matrix():
        flags = [yes if flag else no for flag in (row.cpu_forward, row.cpu_backward)]
        gpu = [phrase(cell, language) if cell == "no" else cell for cell in (row.cuda_forward, row.cuda_backward)]
        lines.append([f"`{row.op}`", row.dtypes, row.head_dims, *flags, *gpu])
    return report.markdown(header, lines)


def features(language: str, up: str) -> str:
    """Which attention function takes which feature on the CPU, with or without gradient."""
    header = [phrase(word, language) for word in ("op", *feature_probes.FEATURES)]
    cells = {"no": "", "forward": phrase("yes", language), "gradient": phrase("yes", language) + " ∇"}
    lines = [[f"`{name}`", *(cells[outcome] for outcome in row)] for name, row in feature_probes.matrix()]
    return report.markdown(header, lines)


# --------------------------------------------------------------------------------------------------------- the results


def _quoted() -> tuple[str, dict[str, dict[str, Any]]] | None:
    name = report.quoted_machine()
    return None if name is None else (name, results.read(results.RESULTS / name))


def _nothing(language: str) -> str:
    return phrase("no results", language)


def _source(language: str, up: str, machine: str, module: str, content: dict[str, Any]) -> str:
    path = f"bench/results/{machine}/{module}.json"
    return f"{report.conditions(content)}. [{path}]({up}{path})"


def chart(language: str, up: str) -> str:
    """The forward chart with its conditions."""
    quoted = _quoted()
    if quoted is None:
        return _nothing(language)
    machine, files = quoted
    path = f"{up}bench/results/{machine}/attention_forward.svg"
    source = _source(language, up, machine, "attention", files["attention"])
    return f"![{phrase('chart title', language)}]({path})\n\n{source}"


def all_charts(language: str, up: str) -> str:
    parts = []
    for machine in results.machines():
        for path in sorted((results.RESULTS / machine).glob("*.svg")):
            parts.append(f"![{machine}: {path.stem}]({up}bench/results/{machine}/{path.name})")
    return "\n\n".join(parts) or _nothing(language)


def summary(language: str, up: str) -> str:
    """The bars against other programs and rates of the machine, met or not, and how many of all bars are met."""
    quoted = _quoted()
    if quoted is None:
        return _nothing(language)
    machine, files = quoted
    shown = summarised(files)
    words = {line[0]: line[-1] for line in report.bars_table(files)[1]}
    left_out = words.keys() - {verdict.bar.what for verdict in shown}
    counted = phrase("bars met", language).format(
        all=len(words),
        met=list(words.values()).count("yes"),
        out=len(left_out),
        missed=sum(words[what] == "NO" for what in left_out),
        page=f"[docs/benchmarks.md]({up}docs/benchmarks.md#bars)",
    )
    modules = ", ".join(f"[{module}.json]({up}bench/results/{machine}/{module}.json)" for module in sorted(files))
    told = [f"{report.where(files['attention'])}; {modules}", *_elsewhere(machine, language, up)]
    return "\n\n".join([_bars_against_others(shown, language), counted, *told])


def _bars_against_others(shown: Sequence[Verdict], language: str) -> str:
    header = [phrase(word, language) for word in ("what", "measured", "worst case", "bar", "met")]
    lines = []
    for verdict in shown:
        bar = verdict.bar
        what = bar.what if language == "en" else _translated(bar.what)
        least = f"{100 * bar.bound:g} %" if _is_share(bar) else f"{bar.bound:g}"
        bound = f"{bar.op} {least} ({phrase(bar.over, language)})"
        met = phrase("met" if verdict.met else "short", language)
        if verdict.others_cpu > BUSY:
            met = phrase("busy", language)
        measured = [_ratio(bar, value) for value in (verdict.measured, verdict.worst)]
        lines.append([what, *measured, bound, met])
    return report.markdown(header, lines)


def _elsewhere(quoted: str, language: str, up: str) -> list[str]:
    """For every other machine how many bars are met there, and a table of those in the first table that are not."""
    told = []
    for machine in results.machines():
        if machine == quoted:
            continue
        files = results.read(results.RESULTS / machine)
        short = [verdict for verdict in summarised(files) if not verdict.met]
        verdicts = report.verdicts(files)
        told.append(
            phrase("bars elsewhere", language).format(
                machine=f"[{machine}]({up}bench/results/{machine})",
                where=report.where(next(iter(files.values()))),
                met=sum(verdict.in_words == "yes" for verdict in verdicts),
                all=len(verdicts),
                short=phrase("short elsewhere" if short else "all met elsewhere", language),
            )
        )
        if short:
            told.append(_bars_against_others(short, language))
    return told


def summarised(files: report.Files) -> list[Verdict]:
    """The bars that measure us by other programs or by the machine, of several programs the strongest."""
    return strongest([verdict for verdict in report.verdicts(files) if verdict.bar.against != "ours"])


def strongest(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Of bars that differ only in the program, the one where we come out worst."""
    worst: dict[tuple[str, float], Verdict] = {}
    for verdict in verdicts:
        bar = verdict.bar
        key = (bar.what.split(" against ")[0] if bar.against == "program" else bar.what, bar.bound)
        other = worst.get(key)
        if other is None or (verdict.decisive < other.decisive) == (bar.op == ">="):
            worst[key] = verdict
    return list(worst.values())


def _ratio(bar: Bar, value: float) -> str:
    """A share of what the machine gives in per cent, a ratio of times or bytes as such."""
    return f"{100 * value:.0f} %" if _is_share(bar) else f"{value:.2f}×"


def _is_share(bar: Bar) -> bool:
    return bar.against == "machine" and bar.op == ">="


def _translated(what: str) -> str:
    for english, chinese in BAR_WORDS:
        what = what.replace(english, chinese)
    return what


def bars(language: str, up: str) -> str:
    parts = []
    for machine in results.machines():
        header, lines = report.bars_table(results.read(results.RESULTS / machine))
        parts.append(f"`{machine}`\n\n{report.markdown(header, lines)}")
    return "\n\n".join(parts) or _nothing(language)


def asked(language: str, up: str) -> str:
    """What the attention bars ask of the quoted machine, in GFLOP/s and as a share of its multiply-add peak."""
    quoted = _quoted()
    if quoted is None:
        return _nothing(language)
    machine, files = quoted
    header = ["bar", "over", "torch, GFLOP/s", "ours", "asked", "multiply-adds alone", "asked of that", "ours of that"]
    rows = report.measured_beside(files["attention"])
    lines = [
        [ask.what, ask.shape, *(f"{rate / 1e9:.0f}" for rate in (ask.torch, ask.ours, ask.asked, ask.peak))]
        + [f"{100 * rate / ask.peak:.0f} %" for rate in (ask.asked, ask.ours)]
        for ask in asks.asks(rows)
    ]
    source = f"[attention.json]({up}bench/results/{machine}/attention.json)"
    if not asks.fma_peak(rows):
        return f"The rate of multiply-adds was not measured in the run of {source}."
    return f"{report.markdown(header, lines)}\n\n{report.conditions(files['attention'])}. {source}"


def results_tables(language: str, up: str) -> str:
    """Every row of every result file."""
    parts = []
    for machine in results.machines():
        files = results.read(results.RESULTS / machine)
        modules = {id(content): module for module, content in files.items()}
        for suite, content, header, lines in report.suite_tables(files):
            source = _source(language, up, machine, modules[id(content)], content)
            parts.append(f"### {suite}, {machine}\n\n{source}\n\n{report.markdown(header, lines)}")
    return "\n\n".join(parts) or _nothing(language)


def errors(language: str, up: str) -> str:
    """How far results lie from float64, ours and plain PyTorch's, by op, result and dtype."""
    name = report.quoted_machine()
    path = results.RESULTS / (name or "") / "studies" / "numerics.json"
    if name is None or not path.exists():
        return _nothing(language)
    study = json.loads(path.read_text(encoding="utf-8"))
    header = [phrase(word, language) for word in ("op", "result", "dtype", "max", "plain max", "mean", "plain mean")]
    lines = [
        [
            op,
            f"`{result}`",
            dtype,
            *(f"{row[kind]:.1e}" for kind in ("ours max", "plain max", "ours mean", "plain mean")),
        ]
        for op, dtypes in study["ops"].items()
        for result in next(iter(dtypes.values()))
        for dtype, rows in dtypes.items()
        for row in [rows[result]]
    ]
    source = f"`{study['command']}`, torch {study['torch']}, {study['cpu_level']}"
    file = f"bench/results/{name}/studies/numerics.json"
    rest = [op for op in study_numerics.problems() if op not in study["ops"]]
    unmeasured = "\n\n" + phrase("unmeasured", language).format(ops="; ".join(rest)) if rest else ""
    return f"{report.markdown(header, lines)}\n\n{source}. [{file}]({up}{file}){unmeasured}"


def _fused_study() -> tuple[str, dict[str, Any]] | None:
    """The study of the fused ops on one thread, with its path."""
    path = f"bench/results/{report.quoted_machine()}/studies/fused_ops.json"
    file = results.ROOT / path
    return (path, json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def fused_ops(language: str, up: str) -> str:
    """Times of the fused ops on one thread beside a copy and torch.compile."""
    if (found := _fused_study()) is None:
        return _nothing(language)
    path, study = found
    words = ("op", "dtype", "ours, ms", "torch.compile, ms", "ours / copy of the same bytes", "torch.compile / ours")
    lines = [
        [
            op,
            {"float32": "fp32", "bfloat16": "bf16"}[dtype],
            *(f"{row[name]:.2f}" for name in ("ours_ms", "torch.compile_ms", "ours_over_copy")),
            f"{1 / row['ours_over_torch.compile']:.2f}",
        ]
        for dtype, ops in study["ops"].items()
        for op, row in ops.items()
    ]
    table = report.markdown([phrase(word, language) for word in words], lines)
    return f"{table}\n\n`{study['command']}`, torch {study['torch']}. [fused_ops.json]({up}{path})"


CALL_LIMITS = {"without gradient": 30.0, "with gradient": 60.0}  # microseconds that a call may cost


def call_costs(language: str, up: str) -> str:
    """What a call on tiny tensors costs, and which calls cost more than they may."""
    if (found := _fused_study()) is None:
        return _nothing(language)
    path, study = found
    costs = study["call_us"]
    header = [phrase("op, µs per call", language), *(phrase(kind, language) for kind in CALL_LIMITS)]
    ops = next(iter(costs.values()))  # those without a gradient included
    lines = [[op, *(f"{costs[kind][op]:.1f}" if op in costs[kind] else "–" for kind in CALL_LIMITS)] for op in ops]
    over = {
        kind: [
            f"`{op}` ({cost:.1f})" for op, cost in costs[kind].items() if cost > limit and not op.startswith("torch")
        ]
        for kind, limit in CALL_LIMITS.items()
    }
    between = "、" if language == "zh" else ", "
    sentences = [
        phrase("call limit", language).format(
            limit=f"{limit:.0f}", kind=phrase(kind, language), ops=between.join(over[kind]) or phrase("none", language)
        )
        for kind, limit in CALL_LIMITS.items()
    ]
    told = ("" if language == "zh" else " ").join(sentences)
    return f"{report.markdown(header, lines)}\n\n{told} [fused_ops.json]({up}{path})"


# ----------------------------------------------------------------------------------------------- other projects' tests


_SIZES = ("queries x keys", "logits, or queries x keys")


def conformance(language: str, up: str) -> str:
    """What `make conformance` wrote of each suite, and why cases are left out; reasons that ended are only counted."""
    runs = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((results.ROOT / "docs/conformance").glob("*.json"))
    ]
    if not runs:
        return _nothing(language)
    counts = ("collected", "eligible", "sampled", "passed", "skipped", "failed", "not_run")
    header = ["suite", "upstream commit", "run", "cases at our commit", *(count.replace("_", " ") for count in counts)]
    lines, reasons, ended = [], [], []
    for run in runs:
        commit = (
            f"[{run['commit'][:10]}](https://github.com/{run['repository']}/tree/{run['commit']}) of {run['committed']}"
        )
        numbers = [str(len(run[count]) if count == "failed" else run[count]) for count in counts]
        ours = ", ".join(f"{count} at {version}" for version, count in run["ours"].items())
        lines.append([run["suite"], commit, f"{run['run']}, {run['cpu_level']}", ours, *numbers])
        current = {deselection.reason for deselection in SUITES[run["suite"]].deselected}
        left_out = run["deselected"].items()
        reasons += [[run["suite"], str(count), reason] for reason, count in left_out if reason in current]
        if drawn := sum(count for reason, count in left_out if reason not in current):
            ended.append(f"{drawn} of {run['suite']}")
        size = f"{run['largest']} {_SIZES[run['suite'] == 'liger']}"
        reasons.append([run["suite"], str(run["larger"]), f"more than {size}: not drawn"])
    files = ", ".join(f"[{run['suite']}.json]({up}docs/conformance/{run['suite']}.json)" for run in runs)
    parts = [report.markdown(header, lines), files, report.markdown(["suite", "cases", "left out because it"], reasons)]
    if ended:
        sentence = "Cases that these runs left out for reasons that no longer stand, for the next run to look at again"
        parts.append(f"{sentence}: {', '.join(ended)}.")
    return "\n\n".join(parts)
