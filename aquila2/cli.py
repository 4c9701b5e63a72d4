"""The command `aquila2`: train, launch, generate, tokenizer, configs, import-megatron, ledger, mentor, report, demo."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from aquila2.checkpoint import from_pretrained, save_pretrained
from aquila2.config import PRESETS, Aquila2Config
from aquila2.device import usable_device
from aquila2.export import DTYPES, add_export
from aquila2.generate import generate
from aquila2.heurimentor.commands import add_commands
from aquila2.heurimentor.engine.world import OtherRankFailed
from aquila2.heurimentor.launch.commands import add_launch
from aquila2.heurimentor.report.page import write_report
from aquila2.megatron import from_megatron
from aquila2.sampling import Sampling
from aquila2.tokenizer import Aquila2Tokenizer
from aquila2.training.checkpoints import newest_valid
from aquila2.training.curve import write_loss_curve
from aquila2.training.metrics import read_metrics
from aquila2.training.options import Options, load_options
from aquila2.training.sources import read_documents
from aquila2.training.trainer import ASKED, Result, train

RECIPES = Path(__file__).parent / "recipes"
# The console script beside the running Python, so that a printed command works without activating the environment.
COMMAND = Path(sys.executable).with_name("aquila2")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status; a wrong argument or file is one sentence, not a traceback."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        return status
    except KeyboardInterrupt:
        print(f"aquila2 {parsed.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError, NotImplementedError, FloatingPointError) as error:
        print(f"aquila2 {parsed.command}: {error}", file=sys.stderr)
        return 2
    except OtherRankFailed:
        return 2  # the first rank says why


def train_and_report(options: Options) -> Result:
    """Trains, prints the held-out losses before and after, and leaves loss curve and report in the run's folder."""
    result = train(options)
    if result.rank:
        return result
    folder = Path(options.run.folder)
    curve = folder / "loss.svg"
    write_loss_curve(
        read_metrics(folder), curve, f"{folder.name}: loss over {result.progress.tokens:,} training tokens"
    )
    if result.stopped_by is not None:
        command = shlex.join([str(COMMAND), "train", str(folder / "config.yaml")])
        print(f"stopped after step {result.progress.step}; {command} goes on")
    else:
        print_heldout(result)
    print(f"loss curve   {curve}")
    print(f"report       {write_report(folder)}")
    print(f"checkpoint   {result.checkpoint}")
    return result


def print_heldout(result: Result) -> None:
    """Prints one line per domain: held-out loss before and after, with 95 % intervals."""
    width = max(len("held-out loss"), *(len(domain) + 2 for domain in result.heldout_before))
    print(f"{'held-out loss':<{width}}  {'before':<15}  after, nats per token")
    for domain, before in result.heldout_before.items():
        after = result.heldout_after[domain]
        print(
            f"  {domain:<{width - 2}}  {before.mean:6.3f} ± {before.half:5.3f}  {after.mean:6.3f} ± {after.half:5.3f}"
        )


def config_table() -> str:
    """All named configurations as a Markdown table."""
    lines = [
        "| name | parameters | layers | hidden | FFN | heads | kv heads | vocab | context | theta | rope scaling |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, config in PRESETS.items():
        millions = config.num_parameters / 1e6
        size = f"{millions / 1e3:.2f} B" if millions >= 1000 else f"{millions:.1f} M"
        scaled = config.rope_scaling != "none"
        scaling = f"{config.rope_scaling} x{config.rope_scaling_factor:g}" if scaled else "none"
        cells = [
            f"`{name}`", size, config.num_hidden_layers, config.hidden_size, config.intermediate_size,
            config.num_attention_heads, config.num_key_value_heads, config.vocab_size,
            config.max_position_embeddings, f"{config.rope_theta:g}", scaling,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


def model_folder(path: str) -> Path:
    """The folder with a model: the path itself, or the newest whole checkpoint of the run that it names."""
    folder = Path(path)
    if (folder / "checkpoints").is_dir():
        checkpoint = newest_valid(folder / "checkpoints", lambda sentence: print(sentence, file=sys.stderr))
        if checkpoint is None:
            raise FileNotFoundError(f"{folder} is a run without a whole checkpoint")
        return checkpoint
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aquila2", description="Aquila2 on flagattn: train, generate, tokenise.")
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("train", help="train a model as a YAML file says, or continue the run in its folder")
    command.add_argument("config", help="YAML file, or the name of a recipe of the package (demo)")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="options to change, e.g. optimizer.lr=3e-4")
    command.set_defaults(run=_train)

    add_launch(commands)

    command = commands.add_parser("generate", help="continue prompts")
    command.add_argument("model", help="folder of a model or of a training run")
    command.add_argument("prompts", nargs="+", metavar="prompt", help="text to continue; several are run as one batch")
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token")
    command.add_argument("--top-k", type=int, default=0)
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=None)
    command.add_argument("--stop", action="append", default=[], help="string that ends the text; may be repeated")
    command.add_argument("--dtype", choices=DTYPES, default=None)
    command.add_argument("--device", default="cpu")
    command.set_defaults(run=_generate)

    command = commands.add_parser("tokenizer", help="train a tokenizer, or look at what one does")
    actions = command.add_subparsers(dest="action", required=True)
    action = actions.add_parser("train", help="learn a vocabulary from files or folders")
    action.add_argument("paths", nargs="+", help="folders, text files, .jsonl or .parquet")
    action.add_argument("--vocab-size", type=int, required=True)
    action.add_argument("--out", required=True, help="folder for the result")
    action.set_defaults(run=_tokenizer_train)
    action = actions.add_parser("encode", help="print the ids of a text")
    action.add_argument("tokenizer", help="folder of a tokenizer")
    action.add_argument("text")
    action.set_defaults(run=_tokenizer_encode)
    action = actions.add_parser("decode", help="print the text of ids")
    action.add_argument("tokenizer", help="folder of a tokenizer")
    action.add_argument("ids", nargs="+", type=int)
    action.set_defaults(run=_tokenizer_decode)

    command = commands.add_parser("configs", help="print the named configurations")
    command.set_defaults(run=_configs)

    command = commands.add_parser(
        "import-megatron", help="make one model of the parts that Megatron or FlagScale saved"
    )
    command.add_argument("folder", help="the checkpoint's folder, or one of its iterations with mp_rank_* in it")
    command.add_argument("out", help="folder for the model")
    command.add_argument("--config", required=True, help="a config.json, or the name of a configuration (see configs)")
    command.add_argument("--dtype", choices=DTYPES, default=None, help="by default that of the files")
    command.add_argument(
        "--rotary-interleaved-patch", action="store_true", help="the run had this option, and its files do not tell"
    )
    command.set_defaults(run=_import_megatron)

    add_export(commands)
    add_commands(commands)

    command = commands.add_parser("demo", help="train a small model on this machine's text, generate, compare kernels")
    command.add_argument("--data", help="your own folder, .jsonl or .parquet instead of the machine's text")
    command.add_argument("--folder", default="runs/demo", help="where the run goes; an earlier demo there is replaced")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="options to change, e.g. train.samples=500")
    command.set_defaults(run=_demo)
    return parser


def _train(parsed: argparse.Namespace) -> int:
    recipe = RECIPES / f"{parsed.config}.yaml"
    result = train_and_report(load_options(recipe if recipe.is_file() else parsed.config, parsed.overrides))
    return _status_of(result.stopped_by)


def _generate(parsed: argparse.Namespace) -> int:
    device = usable_device(parsed.device, "--device")
    folder = model_folder(parsed.model)
    dtype = getattr(torch, parsed.dtype) if parsed.dtype else None
    model = from_pretrained(folder, dtype=dtype, device=device)
    tokenizer = Aquila2Tokenizer.from_pretrained(folder)
    sampling = Sampling(temperature=parsed.temperature, top_k=parsed.top_k, top_p=parsed.top_p, seed=parsed.seed)
    _warn_of_long_text(model.config, tokenizer, parsed.prompts, parsed.max_new_tokens)
    alone = len(parsed.prompts) == 1
    if alone:
        print(parsed.prompts[0], end="", flush=True)
    results = generate(
        model,
        tokenizer,
        parsed.prompts,
        max_new_tokens=parsed.max_new_tokens,
        sampling=sampling,
        stop=parsed.stop,
        on_text=(lambda row, piece: print(piece, end="", flush=True)) if alone else None,
    )
    if alone:
        print()
    else:
        for prompt, result in zip(parsed.prompts, results, strict=True):
            print(f"{prompt}{result.text}\n---")
    return 0


def _warn_of_long_text(
    config: Aquila2Config, tokenizer: Aquila2Tokenizer, prompts: Sequence[str], new_tokens: int
) -> None:
    """One line on stderr where a row may grow longer than the model was made for."""
    # Dynamic scaling is there to go beyond the trained length.
    factor = config.rope_scaling_factor if config.rope_scaling == "dynamic" else 1.0
    limit = int(config.max_position_embeddings * factor)
    longest = max(len(ids) for ids in tokenizer.encode_batch(prompts, bos=True)) + new_tokens
    if longest > limit:
        print(
            f"aquila2 generate: warning: prompt and new tokens may take {longest} positions and the model was made for "
            f"{limit} (max_position_embeddings), beyond which its text may be worse",
            file=sys.stderr,
            flush=True,
        )


def _tokenizer_train(parsed: argparse.Namespace) -> int:
    texts = (document.text for path in parsed.paths for document in read_documents(path) if document.text)
    first = next(texts, None)
    if first is None:
        raise ValueError(f"{', '.join(map(str, parsed.paths))} has no text; a tokenizer is trained on some")
    tokenizer = Aquila2Tokenizer.train(chain([first], texts), parsed.vocab_size, progress=sys.stderr.isatty())
    tokenizer.save_pretrained(parsed.out)
    print(f"{len(tokenizer)} ids in {parsed.out}")
    if len(tokenizer) < parsed.vocab_size:
        print(f"the text has no more pairs to merge, so there are fewer than {parsed.vocab_size}", file=sys.stderr)
    return 0


def _tokenizer_encode(parsed: argparse.Namespace) -> int:
    print(*Aquila2Tokenizer.from_pretrained(parsed.tokenizer).encode(parsed.text))
    return 0


def _tokenizer_decode(parsed: argparse.Namespace) -> int:
    tokenizer = Aquila2Tokenizer.from_pretrained(parsed.tokenizer)
    for token in parsed.ids:
        if not 0 <= token < len(tokenizer):
            raise ValueError(f"ids must lie in [0, {len(tokenizer)}), got {token}")
    print(tokenizer.decode(parsed.ids, skip_special=False))
    return 0


def _configs(parsed: argparse.Namespace) -> int:
    print(config_table())
    return 0


def _import_megatron(parsed: argparse.Namespace) -> int:
    named = parsed.config.lower() in PRESETS
    config = Aquila2Config.named(parsed.config) if named else Aquila2Config.from_json(parsed.config)
    dtype = getattr(torch, parsed.dtype) if parsed.dtype else None
    model = from_megatron(parsed.folder, config, dtype=dtype, interleaved_values=parsed.rotary_interleaved_patch)
    save_pretrained(model, parsed.out)
    kept = str(model.lm_head.weight.dtype).removeprefix("torch.")
    print(f"{config.num_parameters:,} parameters in {kept} in {parsed.out}")
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from aquila2.demo import run_demo

    return _status_of(run_demo(parsed.data, Path(parsed.folder), parsed.overrides))


def _status_of(stopped_by: int | None) -> int:
    """A run that was asked to end did as it should; torchrun takes any other status for a failure."""
    return 0 if stopped_by is None or stopped_by == ASKED else 128 + stopped_by


if __name__ == "__main__":
    sys.exit(main())
