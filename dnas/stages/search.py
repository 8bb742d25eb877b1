"""Float training where it is needed, then the search: float.safetensors, search.ckpt, scores.json, search.json.

Or those of another run, by `search_from`.
"""

import time

from dnas.checkpoint import load_state
from dnas.engine import derived_seed
from dnas.pretrain import float_training
from dnas.recipe import evaluate
from dnas.report.estimator import estimator_pictures
from dnas.search.effects import fit_effects
from dnas.search.judge import judge_estimator, report
from dnas.search.pool import Pool
from dnas.searcher import JUDGED_FILE, POOL_FILE, as_needed, images_seen
from dnas.searcher import search as search_choices
from dnas.space.cost import build_cost
from dnas.space.ranges import with_signs_of
from dnas.stages.context import Run, save_weights
from dnas.stages.search_from import check_source, take_search
from quant.files import write_atomically


def search(run: Run) -> None:
    """Trains the float network (unless a checkpoint brings its weights) and the supernet, and scores the options.

    The space gets the signs of activations that the trained float network has: preflight saw those of its first weights.
    """
    source = check_source(run)
    if source is not None:
        take_search(run, source)
        if run.config.search.searcher == "binas":
            write_estimator(run)
        write_atomically(run.folder.file("scores.json"), source.read("scores.json", "search"))
        return
    config, data, _ = run.config, run.data, run.space  # without a space, nothing is trained
    validation = run.batches("validation", 500, False)
    if not run.folder.file("float.safetensors").exists():
        model = run.model()
        history = []
        if config.model.checkpoint is None or config.model.checkpoint_skip:  # a new head has to be trained
            train = run.batches(data.training(), config.pretrain.batch_size, True, "float")
            training = float_training(model, train, validation, config.pretrain, run.engine)
            board = run.board("float")
            history = run.engine.fit(training, run.folder.file("float.ckpt"), board, config.seed)
            board.close()
        accuracy, _ = evaluate(model, validation.epoch(0))
        run.folder.write_json("float.json", {"validation_accuracy": accuracy, "history": history})
        save_weights(run.folder.file("float.safetensors"), model)
    images = run.images("weights", config.space.calibration_images)
    run.take_space(with_signs_of(run.space, run.float_model(), images))
    start = time.perf_counter()
    supernet = run.supernet(trained=False)
    supernet.calibrate(images)
    teacher = run.float_model()
    board = run.board("search")
    level_two = config.search.level == "two"
    weights = run.batches("weights" if level_two else data.training(), config.search.batch_size, True, "weights")
    checkpoint = run.folder.file("search.ckpt")
    done = len(load_state(checkpoint)["history"]) if checkpoint.exists() else 0
    held_back = run.batches("choices", config.search.batch_size, True, "choices") if level_two else validation
    scores, history = search_choices(
        supernet,
        run.budget,
        weights,
        held_back,
        validation,
        teacher,
        config.search,
        run.engine,
        checkpoint,
        board,
        derived_seed(config.seed, "search"),
    )
    board.heat_maps(len(history) + 1)  # a step of its own, which a resumed run hides and writes again
    board.close()
    needed = as_needed(config.search, run.space, run.budget)
    counted = round(sum(numbers.get("images", 0.0) for numbers in history))
    epochs = sum(numbers["seconds"] for numbers in history)
    scoring = time.perf_counter() - start - sum(numbers["seconds"] for numbers in history[done:])
    run.folder.write_json(
        "search.json",
        {
            "history": history,
            "seconds": epochs + scoring,
            "images": (counted or images_seen(needed, run.space, len(weights) * weights.batch_size))
            * run.engine.world_size,
            "epochs": needed.epochs,
        },
    )
    if config.search.searcher == "binas":
        write_estimator(run)
    write_atomically(run.folder.file("scores.json"), scores.to_json())


def write_estimator(run: Run) -> None:
    """Writes estimator.json: effects with errors, ranking of other sub-networks, and plain findings."""
    pool = Pool.from_json(run.folder.read(POOL_FILE, "search"), run.space)
    neighbours = run.config.search.neighbours
    cost = build_cost(run.space, next(iter(run.budget.caps)), run.functions)
    test = Pool.from_json(run.folder.read(JUDGED_FILE, "search"), run.space)
    judged = judge_estimator(run.space, pool, test, cost, neighbours)
    estimator = fit_effects(run.space, pool, neighbours)
    # effects of neighbouring layers are to be looked at, not selected from
    wider = estimator if neighbours else fit_effects(run.space, pool, neighbours=True)
    content = report(run.space, estimator, judged, run.functions, wider)
    run.folder.write_json("estimator.json", content)
    board = run.board("estimator")
    board.purge(0)
    for name, picture in estimator_pictures(content).items():
        board.image(f"estimator/{name}", picture, 0)
    held_out, alone = judged["held_out"], judged["cost alone"]["tau"]
    low, high = held_out["tau_interval"]
    ranks = (
        f"estimator: Kendall tau {held_out['tau']:.2f} ({low:.2f} to {high:.2f}) on {held_out['n']} other sub-networks; "
        f"cost alone {alone:.2f}"
    )
    board.text("estimator/findings", [ranks, *content["findings"]], 0)
    board.close()
    for sentence in (ranks, *content["findings"]):
        run.console.print(sentence, highlight=False)
