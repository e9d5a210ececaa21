"""The pages in a real browser: Debian's Chromium, driven by Playwright. Skipped where either is absent; CI installs both."""

from __future__ import annotations

import csv
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image

from finetune.pages.run_report import write_report
from tests.helpers.files import ROOT
from tests.helpers.pages import HOSTILE, explain, make_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.full, pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")]


# What a Chinese page may say in Latin letters: names of the field and of the product, keys and values of a run
LATIN_IN_CHINESE = {"BLEU", "ROUGE", "METEOR", "CIDEr", "chrF", "Prism", "SHA", "English", "prism", "weights", "random", "tiny",
                    "auto", "AUROC", "ECE"}


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()


class Watched:
    """A page that notes errors, console lines and requests."""

    def __init__(self, browser, **options):
        self.page = browser.new_page(**options)
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path):
        self.page.goto(path.as_uri())
        return self.page


@pytest.fixture
def watched(chromium):
    watched = Watched(chromium, locale="zh-CN")
    yield watched
    watched.page.close()


def test_every_text_of_the_speed_chart_is_inside_it(watched):
    page = watched.open(ROOT / "docs" / "speed.svg")
    boxes = page.evaluate("[...document.querySelectorAll('text')].map(t => t.getBBox()).map(b => [b.x, b.y, b.x + b.width, b.y + b.height])")
    left, top, right, bottom = page.evaluate("(({x, y, width, height}) => [x, y, x + width, y + height])(document.documentElement.viewBox.baseVal)")
    assert len(boxes) > 15 and all(left < b[0] and top < b[1] and b[2] < right and b[3] < bottom for b in boxes)


def test_the_report_opens_alone_and_its_charts_have_their_points(watched, tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    page = watched.open(path)
    assert watched.errors == [] and watched.requests == [path.as_uri()]
    loss = page.locator("figure", has_text="描述损失").first
    assert loss.locator(".point").count() == 12 and loss.locator(".xtick").count() >= 3 and loss.locator(".ytick").count() >= 3
    assert "轮次" in loss.inner_text() or loss.locator("text", has_text="轮次").count()
    loss.scroll_into_view_if_needed()
    box = loss.locator(".point").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert loss.locator(".tip").inner_text() == "训练，第 3 轮：0.66667"
    assert loss.locator(".mark").count() == 1


def test_the_report_changes_its_language_without_reloading(watched, tmp_path):
    page = watched.open(write_report(make_run(tmp_path / "run")))
    page.wait_for_selector("#rows tbody tr")

    page.click("#more_charts summary")
    for values in ("#rows tbody", "#about td", "#warnings", "#answer", "details:not(#more_charts)", "th + td", ".confusion", "h1", "svg"):
        page.eval_on_selector_all(values, "found => found.forEach(one => { one.style.display = 'none'; })")

    def words():
        text = page.evaluate("document.body.innerText") + " ".join(page.locator("option").all_inner_texts())
        return re.sub("[\u4e00-\u9fff]+ \\(1\\)|[\u4e00-\u9fff]+ \\(2\\)", "", text)  # fields are named by the texts of the run

    foreign = set(re.findall("[A-Za-z]{3,}", words())) - LATIN_IN_CHINESE
    assert "警告" in words() and not foreign, foreign
    page.click("#language")
    assert "Warnings" in words() and not re.search("[\u4e00-\u9fff]", words().replace("中文", "")), words()
    assert len(watched.requests) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_is_readable_on_a_phone_in_light_and_dark(chromium, tmp_path, scheme):
    watched = Watched(chromium, viewport={"width": 375, "height": 700}, color_scheme=scheme)
    page = watched.open(write_report(make_run(tmp_path / "run")))
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    ink, paper = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    dark = [sum(map(int, color.strip("rgb()").split(","))) < 384 for color in (ink, paper)]
    assert dark == ([True, False] if scheme == "light" else [False, True])
    page.close()


def test_hostile_texts_are_shown_as_text(watched, tmp_path):
    page = watched.open(write_report(make_run(tmp_path / "run")))
    assert page.title() == "run" and watched.errors == []
    page.wait_for_selector("#rows tbody tr")
    assert page.locator("img").count() == 0 and page.locator("script:not([type])").count() == 1
    shown = HOSTILE.replace("\u202e", "\\u202e")
    assert shown in page.locator("#rows tbody tr").first.locator("p").first.text_content() and "\u202e" not in page.content()


def test_differences_are_marked_against_the_nearest_reference_and_scores_come_on_demand(watched, tmp_path):
    page = watched.open(write_report(make_run(tmp_path / "run")))
    page.wait_for_selector("#rows tbody tr")
    worst, near, good = page.locator("#rows tbody tr").all()
    assert near.locator("mark.extra").all_inner_texts() == ["低"] and near.locator("mark.miss").all_inner_texts() == ["高"]
    assert worst.locator(".reference").inner_text() == "肺癌 (+1)" and worst.locator("mark.miss").count() == 0
    assert good.locator("mark").count() == 0 and good.inner_text().splitlines()[0].split("\t")[0] == "good" and "= 参考" in good.inner_text()
    assert page.locator("dl.scores").count() == 0
    good.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert page.locator("dl.scores").inner_text().split() == ["ROUGE-L", "1"]


def many(count: int) -> list[dict]:
    """Captions of 20 to 120 characters with five fields, a third of them right, the words of the others exchanged."""
    rng = random.Random(0)
    fields = [["胃体", "胃窦", "贲门"], ["管状腺癌", "印戒细胞癌", "黏液腺癌"], ["高分化", "中分化", "低分化"], ["可见坏死", "未见坏死"],
              [f"淋巴结{i}/{j}" for i in range(9) for j in range(9, 30)]]
    tail = [chr(0x4e00 + i) for i in range(2000)]
    captions = []
    for i in range(count):
        said, true = ["，".join(map(rng.choice, fields)) + "，" + "".join(rng.sample(tail, rng.randint(5, 60))) for _ in range(2)]
        said = true if i % 3 == 0 else said
        captions.append({"epoch": 6, "id": f"TCGA-{i:05d}", "caption": said, "references": [true], "confidence": rng.random(),
                         "scores": {"rouge_l": 1.0 if said == true else 0.9 * rng.random(), "bleu_4": rng.random(), "exact_match": float(said == true)}})
    return captions


def test_twenty_thousand_captions_are_small_and_are_sorted_filtered_and_paged(watched, tmp_path):
    captions = many(20_000)
    path = write_report(make_run(tmp_path / "run", 30, captions))
    assert path.stat().st_size < 5_000_000
    begin = time.monotonic()
    page = watched.open(path)
    page.wait_for_selector("#rows tbody tr")
    assert time.monotonic() - begin < 10
    by_score = sorted(captions, key=lambda c: (c["scores"]["rouge_l"], c["id"]))

    def ids():
        return page.locator("#rows tbody tr td:first-child").all_inner_texts()

    assert ids() == [c["id"] for c in by_score[:50]] and page.inner_text("#page") == "1 / 400"
    page.click("#following")
    assert ids() == [c["id"] for c in by_score[50:100]]
    page.click("button[data-sort=id]")
    page.click("button[data-sort=id]")
    assert ids()[0] == "TCGA-19999" and page.locator("th[aria-sort=descending]").inner_text().startswith("切片")
    page.fill("#find", "贲门")
    expected = [c for c in captions if "贲门" in c["caption"] + c["references"][0]]
    assert page.inner_text("#found") == f"{len(expected)} / 20000 条" and ids()[0] == max(c["id"] for c in expected)
    page.fill("#find", "")
    page.select_option("#topic", "2")
    differing = [c for c in captions if c["caption"].split("，")[2] != c["references"][0].split("，")[2]]
    assert page.inner_text("#found") == f"{len(differing)} / 20000 条"
    page.select_option("#topic", "-1")
    page.select_option("#which", "right")
    assert page.inner_text("#found") == f"{sum(c['caption'] == c['references'][0] for c in captions)} / 20000 条"
    assert watched.errors == []


def test_the_policy_stops_a_script_that_would_get_through(watched, tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    path.write_text(path.read_text(encoding="utf-8").replace("<main>", "<main><script>document.title='owned'</script>"), encoding="utf-8")
    page = watched.open(path)
    assert page.title() == "run" and "Content Security Policy" in watched.errors[0]


def test_pointing_at_a_phrase_lights_its_tiles_and_at_one_without_effect_none(watched, run_with_coords):
    assert explain(run_with_coords, "--embeddings_file", run_with_coords / "embeddings" / "s3.h5", "--explain", run_with_coords / "seen") == 0
    found = json.loads((run_with_coords / "seen" / "explanation.json").read_text(encoding="utf-8"))
    page = watched.open(run_with_coords / "seen" / "explanation.html")
    weights = found["phrases"][0]["weights"]
    expected = [0.9 * weights[i] / max(weights) for i in sorted(range(20), key=lambda i: (i % 5, i // 5))]

    def opacity():
        return page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => Number(getComputedStyle(tile).fillOpacity))")

    assert opacity() == pytest.approx(expected, abs=0.01) and watched.errors == [], "the first map is shown at once"
    for act in ("hover", "focus"):
        for kind, number, shown in (("phrase", 1, [0.0] * 20), ("phrase", 0, expected), ("token", 4, [0.0] * 20), ("token", 1, expected)):
            button = page.locator(f"button.{kind}").nth(number)
            getattr(button, act)()
            assert opacity() == pytest.approx(shown, abs=0.01) and "lit" in button.get_attribute("class")
            assert ("no_map" in button.get_attribute("class")) is (shown != expected)
            assert ("无效应：不要读这张图" in page.inner_text("#note")) is (shown != expected) and "%" in page.inner_text("#note")
    assert page.locator("#tests tr").count() == 1 + len(found["phrases"])
    assert "未见癌" in page.locator("#tests tr").nth(1).inner_text() and "无效应" in page.locator("#tests tr").nth(2).inner_text()


# --- the page to try a model ------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server(run_with_coords):
    pytest.importorskip("starlette", reason="starlette is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "inference.py", "--checkpoint", run_with_coords / "run" / "best_model.pth", "--serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=2).close()
            break
        except OSError:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
    yield url, run_with_coords
    process.terminate()
    process.communicate(timeout=20)


def test_the_page_captions_an_uploaded_slide(watched, server):
    url, folder = server
    page = watched.page
    page.goto(url)
    assert page.locator("#run").is_disabled() and "run/best_model.pth" in page.inner_text("header") and "权重是随机的" in page.inner_text(".banner")
    page.fill("#texts", "胃腺癌，高分化。\n<b>未见癌</b>")
    page.set_input_files("#file", folder / "embeddings" / "s5.h5")
    page.click("#run")
    page.wait_for_selector("#answer", state="visible")
    alone = subprocess.run([sys.executable, "inference.py", "--checkpoint", folder / "run" / "best_model.pth", "--embeddings_file",
                            folder / "embeddings" / "s5.h5", "--text", "胃腺癌，高分化。", "--output", folder / "s5.json"], cwd=ROOT, capture_output=True)
    assert alone.returncode == 0
    record, = json.loads((folder / "s5.json").read_text(encoding="utf-8"))
    assert page.inner_text("#plain") == record["caption"]
    assert float(page.inner_text("#confidence").strip("> %")) == pytest.approx(100 * record["confidence"], abs=0.1)
    rows = page.locator("#scores tr").all_inner_texts()
    assert rows[0].split("\t") == [f"{record['similarity']['胃腺癌，高分化。']:.4f}", "胃腺癌，高分化。"] and "<b>未见癌</b>" in rows[1]
    index = torch.load(folder / "run" / "nearest.pt", weights_only=True)
    known = {f"{i}: {texts[0]}" for i, texts in zip(index["ids"], index["texts"], strict=True)}
    nearest = [t.split("\t")[1] for t in page.locator("#nearest tr").all_inner_texts()]
    assert len(nearest) == 5 and set(nearest) <= known
    page.locator("button.phrase").first.hover()
    assert page.locator(".tile").count() == 20 and page.eval_on_selector_all(".tile", "t => t.some(x => x.style.fillOpacity > 0)")
    assert watched.errors == [] and all(r.startswith(url) for r in watched.requests)


def test_several_files_are_described_one_after_the_other_and_downloaded(watched, server, tmp_path):
    url, folder = server
    page = watched.page
    page.goto(url)
    tensor = tmp_path / "=1+1.pt"
    with h5py.File(folder / "embeddings" / "s3.h5") as file:
        torch.save(torch.from_numpy(file["features"][()]), tensor)
    broken = tmp_path / "\u202etxt.h5"
    broken.write_bytes(b"no HDF5")
    page.set_input_files("#file", [folder / "embeddings" / "s3.h5", tensor, broken])
    page.click("#run")
    page.wait_for_selector("#status:has-text('完成 2 个，1 个不能用')")
    rows = [row.split("\t") for row in page.locator("#slides tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == ["s3.h5", "=1+1.pt", "\\u202etxt.h5"] and rows[0][1] == rows[1][1] and rows[2][1] == "不是 HDF5 文件"
    assert page.locator("#scores_box").is_hidden() and page.inner_text("#file_name") == "s3.h5"
    page.locator("#slides button").nth(1).click()
    assert page.inner_text("#file_name") == "=1+1.pt" and page.locator("#unplaced").is_visible()
    with page.expect_download() as jsonl:
        page.click("#save_jsonl")
    records = [json.loads(line) for line in Path(jsonl.value.path()).read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in records] == ["s3", "=1+1", "\\u202etxt"] and records[0]["caption"] == rows[0][1] and records[2]["error"] == "is not an HDF5 file"
    with page.expect_download() as table:
        page.click("#save_csv")
    lines = list(csv.reader(Path(table.value.path()).read_text(encoding="utf-8-sig").splitlines()))
    assert lines[0] == ["id", "caption", "error", "confidence", "finished", "unusual", "unusual_reason"] and lines[1][4] in ("true", "false")
    assert lines[1][5:] == ["false", ""] and lines[3][4:] == ["", "", ""] and lines[2][0] == "'=1+1" and lines[1][1] == rows[0][1]


def test_an_unusual_slide_says_so_in_both_languages_in_the_table_and_in_what_is_saved(watched, server, tmp_path):
    url, folder = server
    page = watched.page
    page.goto(url)
    with h5py.File(folder / "embeddings" / "s3.h5") as file:
        torch.save(torch.from_numpy(file["features"][:3]), tmp_path / "few.pt")
    page.set_input_files("#file", [folder / "embeddings" / "s3.h5", tmp_path / "few.pt"])
    page.click("#run")
    page.wait_for_selector("#status:has-text('完成 2 个')")
    assert page.locator("#unusual").is_hidden() and [("⚠" in row) for row in page.locator("#slides tbody tr").all_inner_texts()] == [False, True]
    page.locator("#slides button").nth(1).click()
    assert page.inner_text("#unusual").startswith("异常切片：图块比任何训练切片都少（3 个") and page.inner_text("#confidence").startswith("0")
    with page.expect_download() as jsonl:
        page.click("#save_jsonl")
    usual, few = (json.loads(line) for line in Path(jsonl.value.path()).read_text(encoding="utf-8").splitlines())
    assert (usual["unusual"], "unusual_reason" in usual) == (False, False) and few["unusual"] is True and few["unusual_reason"].startswith("fewer tiles")
    assert watched.errors == []


def test_the_map_says_where_a_tile_is_and_can_be_saved(watched, server):
    url, folder = server
    page = watched.page
    page.goto(url)
    page.set_input_files("#file", folder / "embeddings" / "s5.h5")
    page.click("#run")
    page.wait_for_selector(".tile")
    assert page.text_content(".scale_text") == "1000 px"  # of 6 cells of 512 pixels
    page.locator("button.phrase").first.hover()
    assert page.inner_text("#most").endswith("%")
    page.locator(".tile").nth(19).hover()
    assert page.inner_text("#place").startswith("(2048, 1536) px：权重 ")
    with page.expect_download() as saved:
        page.click("#save_map")
    picture = Image.open(saved.value.path()).convert("RGB")
    assert saved.value.suggested_filename.startswith("s5 ") and picture.size == (6 * 24, 5 * 24)
    opacity = page.eval_on_selector_all(".tile", "tiles => tiles.map(tile => Number(tile.style.fillOpacity))")
    hottest = max(range(20), key=opacity.__getitem__)
    x, y = sorted((i % 5, i // 5) for i in range(20))[hottest]
    red, _, blue = picture.getpixel((int((x + 1) * 24), int((y + 1) * 24)))
    assert red > 200 and blue < 60
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy")
    page.wait_for_selector("#copied:has-text('已复制')")
    assert page.evaluate("navigator.clipboard.readText()") == page.inner_text("#plain")


@pytest.mark.parametrize(("locale", "words"), [("zh-CN", "不是 HDF5 文件"), ("en-GB", "is not an HDF5 file")])
def test_a_bad_upload_says_what_is_wrong_in_the_language_of_the_page(chromium, server, locale, words):
    page = chromium.new_page(locale=locale)
    page.goto(server[0])
    page.set_input_files("#file", files=[{"name": "../../etc/<img src=x>.h5", "mimeType": "", "buffer": b"not an H5 file"}])
    page.click("#run")
    page.wait_for_selector("#status.alert")
    assert page.locator("#slides tbody td").nth(1).inner_text() == words and page.locator("#answer").is_hidden()
    assert page.locator("img").count() == 0 and "upload" not in page.inner_text("main")
    page.close()


def test_a_thumbnail_is_laid_below_the_tiles_and_stays_in_the_browser(watched, server, tmp_path):
    """The slides of the fixture have 5 x 4 tiles of 512 from (0, 0): 2560 x 2048 units."""
    url, folder = server
    page = watched.page
    page.goto(url)
    page.set_input_files("#file", [folder / "embeddings" / "s5.h5", folder / "embeddings" / "s3.h5"])
    page.click("#run")
    page.wait_for_selector("#status:has-text('完成 2 个')")
    sent = len(watched.requests)
    Image.new("RGB", (320, 256), (200, 30, 90)).save(tmp_path / "whole.png")
    page.set_input_files("#thumbnail", tmp_path / "whole.png")
    page.wait_for_selector("#map image")
    place = page.eval_on_selector("#map image", "i => ['x', 'y', 'width', 'height'].map(n => Number(i.getAttribute(n)))")
    assert place == pytest.approx([0, 0, 5, 4]) and "假定" in page.inner_text("#thumbnail_state")
    page.fill("#thumbnail_scale", "16")  # twice the slide is on the picture
    page.press("#thumbnail_scale", "Enter")
    page.wait_for_selector("#map image[width='10']")
    assert page.locator(".tile").count() == 20 and page.inner_text("#thumbnail_state") == ""
    page.fill("#thumbnail_scale", "4")
    page.press("#thumbnail_scale", "Enter")
    page.wait_for_selector("#thumbnail_state.alert:has-text('之外')")
    page.set_input_files("#thumbnail", folder / "labels.json")
    page.wait_for_selector("#thumbnail_state.alert:has-text('不是可用的')")
    page.locator("#slides button").nth(1).click()
    assert page.locator("#map image").count() == 0 and page.inner_text("#thumbnail_state") == ""
    page.locator("#slides button").first.click()
    assert page.locator("#map image").count() == 1, "each slide keeps its own picture"
    assert len([r for r in watched.requests[sent:] if r.startswith("http")]) == 0 and watched.errors == []


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_before_and_after(chromium, server, width):
    page = chromium.new_page(viewport={"width": width, "height": 800})
    page.goto(server[0])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_input_files("#file", [server[1] / "embeddings" / "s5.h5"] * 2)
    page.fill("#texts", "很长的文本" * 30)
    page.click("#run")
    page.wait_for_selector("#answer", state="visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def ask(url: str, path: str = "/", data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("path", ["/etc/passwd", "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/describe/../config.yaml", "/static/page.js",
                                  "//etc/passwd", "/?file=/etc/passwd", "/describe?path=/etc/passwd"])
def test_no_request_reaches_a_file(server, path):
    status, body = ask(server[0], path)
    assert b"root:" not in body and b"learning_rate" not in body
    assert status in (404, 405) or body == ask(server[0])[1]


def test_other_sites_and_other_machines_are_refused(server):
    url, folder = server
    slide = (folder / "embeddings" / "s5.h5").read_bytes()
    assert ask(url, "/describe", slide)[0] == 403  # a form of another site can send no header of ours
    assert ask(url, "/", None, Host="evil.example")[0] == 400  # DNS rebinding
    assert ask(url, "/describe", slide, **{"x-prism-coca": "1", "x-texts": "[1]"})[0] == 422
    assert ask(url, "/describe", slide, **{"x-prism-coca": "1"})[0] == 200
    with socket.socket() as probe:
        probe.settimeout(2)
        own = socket.gethostbyname(socket.gethostname())
        assert own.startswith("127.") or probe.connect_ex((own, int(url.rsplit(":")[-1]))) != 0
