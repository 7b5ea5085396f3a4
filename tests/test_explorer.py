"""The page that can be clicked: what it holds is what the network did, and nothing in it can break out."""
import base64
import html
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lesa_nb.look import _page as page_module
from lesa_nb.look import explorer as module
from lesa_nb.look._page import Page, _unpack_view, as_picture, pack_view, read_page
from lesa_nb.look.capture import attention_layers, capture_layer
from lesa_nb.look.explorer import _LIMIT, _view_layer, explorer
from lesa_nb.models.resnet import lesa_resnet50
from lesa_nb.study.small import SmallNet

NASTY = "</script><b>&amp; \u2028 \"'"


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {term: SmallNet(term).eval() for term in ("lesa", "attention", "conv")}


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))


class Reader(HTMLParser):
    "Every element with its attributes, and the text of scripts."

    def __init__(self, page):
        super().__init__()
        self.elements, self.ids, self.scripts, self.within = [], [], [], None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        self.within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.within = None

    def handle_data(self, data):
        if self.within == "script":
            self.scripts[-1] += data


def test_the_page_holds_what_the_network_did(networks, photo):
    x = torch.rand(1, 3, 50, 70)
    views = read_page(explorer(photo, networks, x).html)[1]
    assert [len(v) for v in views.values()] == [2, 2, 0]
    for view in views["lesa"]:
        seen = capture_layer(networks["lesa"], x, view.layer)
        assert view.size == seen.size == (10, 14) and view.heads == 4
        for row, column in ((0, 0), (3, 11), (9, 13)):
            maps, heads = view.attention(row, column), seen.attention(row, column)[0]
            for k, (drawn, true) in enumerate(zip(maps, torch.cat([heads.mean(0, keepdim=True), heads]))):
                scale = heads.amax((1, 2)).mean() if k == 0 else true.max()
                assert (drawn - true).abs().max() <= scale/510 + 1e-7
                i = row*14 + column
                assert view.rows["top"][k, i] == pytest.approx(true.max().item(), rel=1e-5)
                assert true.flatten()[int(view.rows["peak"][k, i])] == pytest.approx(true.max().item(), rel=1e-5)
                assert view.rows["own"][k, i] == pytest.approx(true[row, column].item(), rel=1e-4)
        torch.testing.assert_close(view.parts["gate"], seen.gate[0].mean(0).flatten())


def test_plain_attention_has_its_own_weights(networks, photo):
    x = torch.rand(1, 3, 50, 70)
    layer, inputs = networks["attention"].blocks[1].conv2, []
    hook = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    networks["attention"](x)
    hook.remove()
    view = read_page(explorer(photo, networks["attention"], x).html)[1]["SmallNet"][1]
    w_GNN = layer.context.weights(inputs[0])[0]
    for i in (0, 77, 139):
        away = (view.attention(i//14, i%14)[1:].flatten(1) - w_GNN[:, i]).abs().amax(1)
        assert (away <= w_GNN[:, i].amax(1)/510 + 1e-7).all()
    assert view.kind == "plain attention" and list(view.parts) == ["context"]


@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("term", ["lesa", "attention"])
def test_a_view_survives_the_text_to_the_bit(networks, term, heads):
    view = _view_layer(capture_layer(networks[term], torch.rand(1, 3, 50, 70)), heads)
    back = _unpack_view(json.loads(page_module._in_script(pack_view(view))))
    assert back[:4] == view[:4] and torch.equal(back.stored, view.stored) and back.maps == view.maps
    for mine, yours in ((back.rows, view.rows), (back.parts, view.parts)):
        assert list(mine) == list(yours) and all(torch.equal(mine[name], yours[name]) for name in mine)


def test_text_cannot_leave_its_script():
    assert not set("<>&\u2028") & set(page_module._in_script([NASTY]))
    assert json.loads(page_module._in_script([NASTY])) == [NASTY]
    with pytest.raises(ValueError, match="expected a page made by `explorer`"):
        read_page("<html></html>")


def test_the_photo_is_in_the_page_to_the_pixel_and_large_ones_are_shown_smaller(networks, photo):
    def shown(picture):
        data = read_page(explorer(picture, networks["lesa"], torch.rand(1, 3, 60, 60)).html)[0]
        return data, Image.open(io.BytesIO(base64.b64decode(data["photo"].removeprefix("data:image/png;base64,"))))

    data, png = shown(photo)
    assert np.array_equal(np.array(png), np.array(photo)) and data["picture"] == [50, 70] and data["pixel"] == [25, 35]
    data, png = shown(photo.resize((2000, 1000)))
    assert png.size == (720, 360) and data["picture"] == [1000, 2000]
    for mode in ("L", "CMYK", "P"):
        assert shown(photo.convert(mode))[1].mode == "RGB"
    tensor = torch.rand(3, 50, 70)
    levels = np.array(shown(tensor)[1].convert("RGB"))/255
    assert np.abs(levels - tensor.permute(1, 2, 0).numpy()).max() <= 1/510 + 1e-6
    assert as_picture(torch.rand(1, 4, 5)).size == (5, 4)
    with pytest.raises(ValueError, match=r"expected a photo as a PIL image or a tensor .* found \(1, 3, 4, 5\)"):
        as_picture(torch.rand(1, 3, 4, 5))


@pytest.mark.parametrize("name", [
    "</script><script>alert(1)</script>", "<!--<script>", "<b>bold</b> & \"quoted\" 'single'", "{{page}} {{title}}",
    "\\1 \\g<0> $&", "line\u2028break\u2029", "caf\udce9.jpg", "日本語 🐼", "<img src=x onerror=alert(2)>{{page}}",
])
def test_names_stay_text(networks, photo, name):
    images = torch.rand(1, 3, 60, 60)
    plain, odd = (explorer(photo, {n: networks["lesa"]}, images, title=n) for n in ("a", name))
    safe = name.encode("utf-8", "replace").decode()
    data, views = read_page(odd.html)
    assert data["title"] == safe and list(views) == [safe]
    a, b = Reader(plain.html), Reader(odd.html)
    assert a.elements == b.elements and len(b.scripts) == len(a.scripts) == 2  # nothing became markup
    assert html.unescape(re.search("<title>(.*?)</title>", odd.html, re.DOTALL)[1]) == safe
    odd.html.encode("utf-8")
    frame = Reader(odd._repr_html_()).elements
    assert len(frame) == 1 and frame[0][0] == "iframe" and frame[0][1]["srcdoc"] == odd.html
    assert frame[0][1]["sandbox"] == "allow-scripts"  # no way to the notebook around it


def test_a_page_is_saved_whole_and_shown_in_a_frame(networks, photo, tmp_path):
    page = explorer(photo, networks["lesa"], torch.rand(1, 3, 60, 60), title=NASTY)
    path = page.save(tmp_path/"new"/"page.html")
    assert path.read_text(encoding="utf-8") == page.html
    with pytest.raises(ValueError, match="a folder; expected the name of a file"):
        page.save(tmp_path)
    assert repr(page) == f"Explorer, a page of {len(page.html)/1e6:.1f} MB"
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^<]*></iframe>', page._repr_html_())
    assert html.unescape(frame[1]) == page.html and Page(page.html, 500)._repr_html_().count('height="500"') == 1


def test_the_page_needs_nothing_from_outside(networks, photo):
    page = explorer(photo, networks, torch.rand(1, 3, 60, 60)).html
    for tag, attributes in Reader(page).elements:
        for name in ("src", "href", "action"):
            assert attributes.get(name, "data:").startswith("data:"), tag
    code = Reader(page).scripts[1]
    for word in ("fetch(", "XMLHttpRequest", "import(", "innerHTML", "eval(", "document.write", "localStorage",
                 "http:", "https:"):
        assert word not in code
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    assert "default-src 'none'" in page and "{{" not in page


def test_the_page_can_be_used_without_a_mouse_and_by_ear(networks, photo):
    reader = Reader(explorer(photo, networks, torch.rand(1, 3, 60, 60)).html)
    assert len(reader.ids) == len(set(reader.ids))
    by_id = {a["id"]: a for _, a in reader.elements if "id" in a}
    assert ("html", {"lang": "en"}) in reader.elements
    assert by_id["photo"]["tabindex"] == "0" and by_id["said"]["aria-live"] == "polite"
    for _, a in reader.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert name not in a or a[name] in reader.ids
    code = reader.scripts[1]
    for name in set(re.findall(r'byId\("(\w+)"\)', code)):
        assert name in reader.ids, name
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        assert key in code


def contrast(a, b):
    "Of two colours, as the accessibility guidelines (WCAG 2) define it."
    def light(hue):
        channels = [int(hue[i:i+2], 16)/255 for i in (1, 3, 5)]
        r, g, b = (c/12.92 if c <= .04045 else ((c + .055)/1.055)**2.4 for c in channels)
        return .2126*r + .7152*g + .0722*b

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + .05)/(low + .05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(networks, photo, scheme):
    page = explorer(photo, networks, torch.rand(1, 3, 60, 60)).html
    light, _, rest = page.partition("@media (prefers-color-scheme: dark) {")
    colours = dict(re.findall(r"--(\w+): (#\w{6})", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--(\w+): (#\w{6})", rest.partition("@media")[0]))
    pairs = [("quiet", "paper"), ("lesa", "paper"), *((ink, "card") for ink in ("quiet", "gate", "local", "context"))]
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["edge"], colours["card"]) >= 3  # the edges of what can be operated


def test_comparisons_are_fair_by_default(networks, photo):
    reader = Reader(explorer(photo, networks, torch.rand(1, 3, 60, 60)).html)
    own = next(a for _, a in reader.elements if a.get("id") == "own")
    assert own["type"] == "checkbox" and "checked" not in own  # one scale for all maps until somebody asks otherwise


def test_a_large_page_is_refused_before_its_maps_are_made(networks, photo, monkeypatch):
    monkeypatch.setattr(module, "_view_layer", lambda *args: pytest.fail("a map was made"))
    with pytest.raises(ValueError) as error:
        explorer(photo, networks["lesa"], torch.rand(1, 3, 250, 250))
    said = str(error.value)
    for part in ("2 layers", "4 maps of 50x50 positions", "50.0 MB", "40 MB", "25.0 MB", "12.5 MB", "smaller picture"):
        assert part in said, said


def test_all_of_a_lesa_resnet50_at_448_fits():
    layers = attention_layers(lesa_resnet50())
    assert sum(layer.context.heads*(448//16)**4 for layer in layers.values()) <= _LIMIT


def test_a_page_of_a_layer_of_ones_own(photo):
    "Whatever has a context term can be explored, and explained."
    class Mine(nn.Module):
        def __init__(self, context):
            super().__init__()
            self.context = context

        def forward(self, x):
            return self.context(x)

    mine = Mine(SmallNet("attention", size=20).blocks[0].conv2.context)
    body = nn.Sequential(nn.AvgPool2d(10), mine)
    with pytest.raises(ValueError, match="expected a map of shape"):
        explorer(photo, body)
    context = nn.Sequential(nn.AvgPool2d(10), nn.Conv2d(3, 56, 1), mine)
    assert read_page(explorer(photo, context).html)[1]["Sequential"][0].kind == "plain attention"


def test_the_network_is_left_as_it_was(networks, photo):
    net = networks["lesa"].train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    explorer(photo, net, torch.rand(1, 3, 60, 60))
    assert net.training and all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    with pytest.raises(RuntimeError):
        explorer(photo, net, torch.rand(1, 5, 60, 60))  # the network itself refuses
    assert net.training and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    net.eval()


def test_importing_needs_no_plotting(root):
    code = "import sys\nfor name in 'explorer maps gallery capture _page'.split():\n"
    code += "    __import__(f'lesa_nb.look.{name}')\n    print(name, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    names = ("explorer", "maps", "gallery", "capture", "_page")
    assert done.stdout.splitlines() == [f"{name} False" for name in names], done.stderr


def test_what_is_spread_evenly_is_dark(networks, photo):
    code = Reader(explorer(photo, networks, torch.rand(1, 3, 60, 60)).html).scripts[1]
    assert "const LEAST = 4;" in code and "Math.max(LEAST, ...cards.map(card => card.shares(pixel)))" in code


def test_bars_differ_by_more_than_colour_and_a_redrawn_table_keeps_the_keyboard(networks, photo):
    page = explorer(photo, networks, torch.rand(1, 3, 60, 60)).html
    style = page.partition("<style>")[2].partition("</style>")[0]
    patterns = {part: re.search(rf"\.bar \.{part} {{ background: ([^;]+);", style) for part in ("context", "gate")}
    assert patterns["context"][1] != patterns["gate"][1] and "gradient" in patterns["gate"][1]
    assert "if (held) go.focus();" in page and "[hidden] { display: none !important; }" in style


def test_phone_print_and_forced_colours_have_styles(networks, photo):
    page = explorer(photo, networks, torch.rand(1, 3, 60, 60)).html
    phone = page.partition("@media screen and (max-width: 640px) {")[2].partition("</style>")[0]
    assert "#picture-card .picture { position: sticky; top: 0;" in phone
    assert "@media print {" in page and "@media (forced-colors: active) {" in page


def test_who_waits_for_a_page_can_watch_its_layers(networks, photo):
    seen = []

    def watch(layers):
        for layer in layers:
            seen.append(layer)
            yield layer

    page = explorer(photo, networks, torch.rand(1, 3, 60, 60), watch=watch)
    assert [name for name, _ in seen] == ["lesa", "lesa", "attention", "attention"]
    assert [len(v) for v in read_page(page.html)[1].values()] == [2, 2, 0]
