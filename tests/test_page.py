"""The page, in Chromium: what a person sees, beside the arrays."""
import os
import re
import shutil

import numpy as np
import numpy_gpt2
import pytest
import toy

from inspection import analyses, page
from inspection.inspector import Inspector, trace

TEXTS = ['the <script>document.title = "ran"</script> & the light\nof a harbour', 'a keeper']


@pytest.fixture(scope='module')
def toy_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models') / 'toy'
    return str(folder), *toy.write_model(folder, toy.hparams(n_ctx=128))


@pytest.fixture(scope='module')
def inspected(toy_model):
    return Inspector(toy_model[0])


@pytest.fixture(scope='module')
def browser():
    webdriver = pytest.importorskip('selenium.webdriver')
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (chromium and driver):
        pytest.skip("Debian's packages chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--window-size=1400,1200'):
        options.add_argument(word)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        yield browser


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page of models and texts, and returns the browser."""
    def open_page(models, texts, notes=()):
        ids = [models[0][1].enc.encode(text) for text in texts]
        (tmp_path / 'page.html').write_text(page.make_page(models, ids, notes))
        browser.get(f'file://{tmp_path}/page.html')
        return browser
    yield open_page
    assert browser.get_log('browser') == []
    asked_for = browser.execute_script('return performance.getEntriesByType("resource")')
    assert asked_for == []


def cells(browser, table):
    rows = f'[...document.querySelectorAll("#{table} tr")]'
    return browser.execute_script(f'return {rows}.map(row => [...row.cells].map(cell => cell.innerText))')


def number(text):
    return float(re.sub('[ %,]', '', text.replace('−', '-')))


def hover(browser, token):
    from selenium.webdriver.common.action_chains import ActionChains
    span = browser.find_element('css selector', f'#text span[data-token="{token}"]')
    title = browser.find_element('id', 'title')  # the first event of a page has no movement
    ActionChains(browser).move_to_element(title).move_to_element(span).perform()
    assert 'current' in span.get_attribute('class')


def pixels(browser, canvas):
    return np.array(browser.execute_script(
        f'const canvas = document.getElementById("{canvas}");'
        'return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];'))


def text_of(browser, id):
    return browser.find_element('id', id).text


def test_text_is_shown_as_text(opened, inspected):
    browser = opened([('toy, model.ckpt', inspected)], TEXTS, ['<b>A note.</b>'])
    assert browser.title == 'How a model reads text'
    assert browser.find_element('id', 'text').text.replace('⏎', '').rstrip('▢') == TEXTS[0]
    assert text_of(browser, 'title') == 'toy, model.ckpt' and text_of(browser, 'notes') == '<b>A note.</b>'


def test_a_hover_shows_the_probabilities_of_the_token(opened, inspected, toy_model):
    browser = opened([('toy', inspected)], TEXTS)
    tokens = inspected.enc.encode(TEXTS[0])
    logprobs = np.log(numpy_gpt2.softmax(numpy_gpt2.logits(toy_model[2], tokens, toy_model[1].n_head)))
    for i in (1, 7, len(tokens) - 1):
        hover(browser, i)
        rank = 1 + (logprobs[i - 1] > logprobs[i - 1, tokens[i]]).sum()
        facts = re.fullmatch(r'.*; id (\d+); log-probability (.+); rank (\d+)', text_of(browser, 'facts'))
        assert (int(facts[1]), int(facts[3])) == (tokens[i], rank)
        assert number(facts[2]) == pytest.approx(logprobs[i - 1, tokens[i]], abs=6e-4)
        likeliest = [number(row[1]) for row in cells(browser, 'alternatives')[1:]]
        np.testing.assert_allclose(likeliest, 100 * np.exp(-np.sort(-logprobs[i - 1])[:10]), atol=6e-3)
    hover(browser, len(tokens))  # the next token, which is not in the text
    assert number(cells(browser, 'alternatives')[1][1]) == pytest.approx(
        100 * np.exp(logprobs[-1].max()), abs=6e-3)


def test_attention_of_a_chosen_head_is_the_array_s(opened, inspected):
    from selenium.webdriver.support.select import Select
    browser = opened([('toy', inspected)], TEXTS)
    tokens = inspected.enc.encode(TEXTS[0])
    name = 'blocks.1.attn.hook_pattern'
    pattern = trace(inspected, tokens, name)[name][0, 2]
    Select(browser.find_element('id', 'layer')).select_by_visible_text('1')
    Select(browser.find_element('id', 'head')).select_by_visible_text('2')
    hover(browser, 9)
    shown = {int(key): number(weight) for key, _, weight in cells(browser, 'keys')[1:]}
    assert shown == pytest.approx({key: pattern[9, key] for key in shown}, abs=6e-5) and len(shown) == 10
    image = pixels(browser, 'map').reshape(len(tokens), len(tokens), 4)
    brightness = image[..., :3].sum(-1)
    assert (brightness[9, :10].argmax(), image[9, 10:, 3].any()) == (pattern[9].argmax(), False)
    assert pixels(browser, 'arcs').any()


def test_lens_and_attribution_are_the_arrays(opened, inspected, toy_model):
    browser = opened([('toy', inspected)], TEXTS)
    tokens = inspected.enc.encode(TEXTS[0])
    hover(browser, 9)
    _, logprobs = analyses.logit_lens(inspected, tokens, 1)
    column = [name.split(':')[0] for name in cells(browser, 'lens')[0]].index('8')
    shown = [number(row[column].rsplit(' ', 2)[1]) for row in cells(browser, 'lens')[1:]]
    np.testing.assert_allclose(shown[::-1], 100 * np.exp(logprobs[0, :, 8, 0]), atol=6e-3)
    parts = analyses.direct_logit_attribution(inspected, tokens, tokens[9], 'mean')
    table = np.array([[number(cell) for cell in row[1:]] for row in cells(browser, 'attribution')[1:]])
    np.testing.assert_allclose(table[:, :4], parts['heads'][0, :, :, 8], atol=6e-3)
    np.testing.assert_allclose(table[:, 5], parts['mlp'][0, :, 8], atol=6e-3)
    logits = numpy_gpt2.logits(toy_model[2], tokens, toy_model[1].n_head)[8]
    total = number(re.search(r'logits, is (\S+)\. ', text_of(browser, 'written'))[1])
    assert total == pytest.approx(logits[tokens[9]] - logits.mean(), abs=6e-3)


def test_keys_go_through_the_text(opened, inspected):
    from selenium.webdriver.common.keys import Keys
    browser = opened([('toy', inspected)], TEXTS)
    text, last = browser.find_element('id', 'text'), len(inspected.enc.encode(TEXTS[0]))
    for keys, token in (([Keys.RIGHT], 2), ([Keys.RIGHT, Keys.RIGHT, Keys.LEFT], 3), ([Keys.HOME], 0),
                        ([Keys.LEFT], 0), ([Keys.END], last)):
        text.send_keys(*keys)
        assert text_of(browser, 'facts').startswith(f'{token}: ')


def test_colours_and_histogram_by_rank(opened, inspected):
    browser = opened([('toy', inspected)], TEXTS)
    tokens = np.array([inspected.enc.encode(TEXTS[0])], np.int32)
    ranks = page.read_text(inspected, tokens)['ranks']
    classes = np.searchsorted(page.RANKS, ranks)
    browser.find_element('css selector', 'input[value=rank]').click()
    colours = browser.execute_script(
        'return [...document.querySelectorAll("#text span")].slice(1, -1).map(span => span.style.background)')
    assert len({*zip(classes, colours, strict=True)}) == len({*colours}) == len({*classes}) > 1
    counts = [int(row[1]) for row in cells(browser, 'histogram')[1:]]
    assert counts == np.bincount(classes, minlength=4).tolist()


def test_a_row_for_each_text(opened, inspected):
    browser = opened([('toy', inspected)], TEXTS)
    rows = cells(browser, 'texts')
    for row, text in zip(rows[1:], TEXTS, strict=True):
        tokens = np.array([inspected.enc.encode(text)], np.int32)
        assert int(row[1]) == tokens.size
        assert number(row[2]) == pytest.approx(page.read_text(inspected, tokens)['logprobs'].mean(), abs=6e-4)
    browser.find_elements('css selector', '#texts tr')[2].click()
    assert browser.find_element('id', 'text').text.rstrip('▢') == TEXTS[1]


def test_two_models_differ_by_token(opened, inspected, tmp_path):
    hp = inspected.hparams
    toy.write_model(tmp_path / 'other', hp, toy.weights(hp, seed=1))
    other = Inspector(str(tmp_path / 'other'))
    browser = opened([('toy', inspected), ('other', other)], TEXTS)
    browser.find_element('css selector', 'input[value=difference]').click()
    hover(browser, 4)
    tokens = np.array([inspected.enc.encode(TEXTS[0])], np.int32)
    a, b = (page.read_text(model, tokens)['logprobs'] for model in (inspected, other))
    assert number(text_of(browser, 'facts').rsplit(' ', 1)[1]) == pytest.approx(b[3] - a[3], abs=2e-3)
    assert number(cells(browser, 'texts')[1][-1]) == pytest.approx((b - a).mean(), abs=2e-3)


@pytest.mark.parametrize('PART_BYTES', [1000, 6000])
def test_many_tokens_leave_parts_out_and_say_so(opened, inspected, monkeypatch, PART_BYTES):
    monkeypatch.setattr(page, 'PART_BYTES', PART_BYTES)
    browser = opened([('toy', inspected)], TEXTS)
    assert ('no room for attention, lens and' in text_of(browser, 'notes')) == (PART_BYTES == 1000)
    assert not browser.find_element('id', 'attention').is_displayed()
    assert browser.find_element('id', 'details').is_displayed() == (PART_BYTES == 6000)
    hover(browser, 3)
    assert 'log-probability' in text_of(browser, 'facts')


def test_attention_with_room_for_few_keys_shows_these(opened, inspected, monkeypatch):
    tokens = inspected.enc.encode(TEXTS[1])
    monkeypatch.setattr(page, 'PART_BYTES', 4 * 8 * len(tokens) * 4)
    browser = opened([('toy', inspected)], TEXTS[1:])
    hover(browser, len(tokens) - 1)
    name = 'blocks.0.attn.hook_pattern'
    pattern = trace(inspected, tokens, name)[name][0, 0, -1]
    shown = [number(weight) for _, _, weight in cells(browser, 'keys')[1:]]
    np.testing.assert_allclose(shown, -np.sort(-pattern)[:4], atol=6e-5)


def test_one_token_has_no_figures(opened, inspected):
    browser = opened([('toy', inspected)], [TEXTS[1], 'a'])
    browser.find_elements('css selector', '#texts tr')[2].click()
    assert 'NaN' not in browser.find_element('tag name', 'body').text
    hover(browser, 1)
    assert len(cells(browser, 'alternatives')) == 11


def test_texts_of_other_lengths_build_no_other_model(inspected):
    page.make_page([('toy', inspected)], [inspected.enc.encode(TEXTS[0])])
    before = len(inspected.session.graph.get_operations())
    page.make_page([('toy', inspected)], [inspected.enc.encode(text) for text in TEXTS])
    assert len(inspected.session.graph.get_operations()) == before


def test_parts_of_characters_and_ids_without_text_are_shown(tmp_path):
    toy.write_padded_model(tmp_path / 'padded')
    enc = Inspector(str(tmp_path / 'padded')).enc
    assert ''.join(page.piece(enc, id) for id in enc.encode('日 é')).replace(r'\x', '') == 'e697a5 c3a9'
    assert page.piece(enc, enc.n_vocab + 1) == f'[{enc.n_vocab + 1}]'


def test_the_page_is_one_file_that_asks_for_nothing():
    with open(os.path.join(os.path.dirname(page.__file__), 'page.html'), encoding='utf-8') as file:
        text = file.read()
    assert "default-src 'none'" in text and not re.search(r'(?:src|href)=|https?:', text)
