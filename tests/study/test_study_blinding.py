"""A program that sees everything a client can see except the picture itself cannot tell the classes apart."""

import json
import time

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from study_helpers import Client, Server, an_answer, make_study

from vmddpm.study.folder import load_key

IMAGES = 200


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Smooth images with a comment and noisy images without, of other sizes and times, so that a leak would show."""
    return make_study(tmp_path_factory.mktemp("blind"), n=IMAGES // 2, size=48)


@pytest.fixture(scope="module")
def seen(study):
    """A reader's view of each image, in her order: headers, body, and the times of five fetches."""
    views = []
    with Server(study.path) as server:
        client = Client(server)
        states = [client.sign_in("anna")]
        for position in range(IMAGES):
            times = []
            for _ in range(5):
                start = time.perf_counter()
                _, headers, body = client.request("GET", f"/image/{position}")
                times.append(time.perf_counter() - start)
            views.append((headers, body, times))
            states.append(client.json("POST", "/answer", an_answer(position))[1])
    return views, states


def chunks(png):
    """[(type, length)] of a PNG file."""
    found, place = [], 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        found.append((png[place + 4 : place + 8], length))
        place += 12 + length
    return found


def test_no_image_differs_from_another_outside_its_pixels(seen):
    views, _ = seen
    clock = ("date", "set-cookie")  # they identify the time and the reader
    headers = {json.dumps([item for item in headers if item[0] not in clock]) for headers, _, _ in views}
    assert len(headers) == 1
    assert not {"etag", "last-modified"} & {name for name, _ in json.loads(headers.pop())}
    assert len({len(body) for _, body, _ in views}) == 1
    kinds = {tuple(chunks(body)) for _, body, _ in views}
    assert len(kinds) == 1
    assert [kind for kind, _ in kinds.pop()] == [b"IHDR", b"IDAT", b"IEND"]


def test_the_state_of_a_reader_names_no_image(study, seen):
    _, states = seen
    text = json.dumps(states)
    assert not any(name in text for name in [*study.images, study.shuffle, "hospital", "generated", str(study.path)])
    assert {tuple(sorted(state)) for state in states[1:]} == {("next", "previous", "reader", "total")}


def attack(features, classes):
    """The p-value that a forest's held-out guesses are better than chance."""
    forest = RandomForestClassifier(100, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guesses = cross_val_predict(forest, np.asarray(features, float), classes, cv=folds)
    return binomtest(int((guesses == classes).sum()), len(classes), alternative="greater").pvalue


def test_a_classifier_of_all_of_it_does_no_better_than_chance(study, seen, tmp_path):
    views, _ = seen
    key = load_key(study)
    order = study.order("anna")
    classes = np.array([key[name] == "real" for name in order])
    features = [
        [position, len(body), len(headers), sum(len(n) + len(v) for n, v in headers), len(chunks(body)),
         np.median(times), min(times), key[order[max(position - 1, 0)]] == "real"]
        for position, (headers, body, times) in enumerate(views)
    ]  # fmt: skip
    assert attack(features, classes) > 1e-4

    # The same attack finds the classes in ordinary PNG files.
    sizes = []
    for _, body, _ in views:
        (tmp_path / "stored.png").write_bytes(body)
        with Image.open(tmp_path / "stored.png") as image:
            image.save(tmp_path / "usual.png")
        sizes.append([(tmp_path / "usual.png").stat().st_size])
    assert attack(sizes, classes) < 1e-20


def test_classes_come_in_no_order(study):
    """Runs and places of the classes in the orders of 100 readers, against those of random shuffles."""
    key = load_key(study)
    shown = np.array([[key[name] == "real" for name in study.order(f"reader{i}")] for i in range(100)], float)
    centred = shown - 0.5
    n = shown.size
    assert abs(centred.sum()) == 0
    halves = centred[:, : IMAGES // 2].sum()
    assert abs(halves) < 4 * (n * 0.25 * 0.5 * 0.5) ** 0.5
    neighbours = (centred[:, 1:] * centred[:, :-1]).sum()
    assert abs(neighbours) < 4 * (n / 16) ** 0.5 + n / IMAGES / 4
    names = np.array([key[name] == "real" for name in study.images])
    assert binomtest(int(names[: IMAGES // 2].sum()), IMAGES // 2).pvalue > 1e-3
