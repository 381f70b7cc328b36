"""The page in a browser: one browser and one service for all tests."""

import json
import os
import shutil
import time

import pytest

from tests.helpers import videos

sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed')
CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no chromium on this machine')
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--mute-audio']
WAIT = 20_000  # milliseconds
SENTENCES = ['a man in a red shirt', 'the dog runs']


@pytest.fixture(scope='module', name='browser')
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope='module', name='open_page')
def page_opener(browser, running):
    """Opens the page; in the end no request went elsewhere, and no script failed."""
    requests, errors = [], []

    def start(**options):
        context = browser.new_context(**dict(viewport=dict(width=1280, height=800)) | options)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        context.on('request', lambda request: requests.append(request.url))
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.goto(running.url)
        page.wait_for_selector('#samples button')
        return page

    yield start
    assert requests and not errors
    assert {url for url in requests if not url.startswith((running.url, 'blob:', 'data:'))} == set()


@pytest.fixture(scope='module', name='page')
def page_with_moments(open_page, beach):
    page = open_page()
    choose(page)
    for sentence in SENTENCES:
        ask(page, sentence)
    return page


def choose(page, name='beach.webm'):
    page.get_by_role('button', name=name).first.click()
    page.wait_for_selector('#timeline:not([hidden])')


def ask(page, sentence):
    page.fill('#sentence', sentence)
    page.keyboard.press('Enter')
    page.wait_for_selector(f'.query:has-text("{sentence}") .moments button')


def seek(page, act):
    """Where the player goes by what `act` does; it may play on before anybody looks."""
    page.evaluate("""() => {
        const video = document.getElementById('video');
        window.sought = null;
        video.addEventListener('seeking', () => { window.sought = video.currentTime; },
                               { once: true });
    }""")
    act()
    wait_until(page, 'window.sought !== null && !document.getElementById("video").seeking')
    return page.evaluate('window.sought')


def wait_until(page, script):
    for _ in range(WAIT // 20):  # Playwright's own wait evaluates text, which the page forbids
        if page.evaluate(script):
            return
        page.wait_for_timeout(20)
    raise AssertionError(script)


def test_upload_progress_and_query(open_page, files, running, monkeypatch):
    """A sentence typed while the video is read is answered when it is ready."""
    path = videos.make(files / 'mine <b>.webm', 26, size='128x96', codec='-c:v libvpx')
    encode = type(running.service.device).call

    def slowly(*arguments):
        time.sleep(0.3)
        return encode(*arguments)

    monkeypatch.setattr(type(running.service.device), 'call', slowly)
    page = open_page()
    page.set_input_files('#file', str(path))
    page.wait_for_selector('#progress:not([hidden])')
    page.fill('#sentence', SENTENCES[0])
    page.keyboard.press('Enter')
    wait_until(page, '/Upl|Wait|Reading/.test(document.getElementById("doing").textContent)')
    page.wait_for_selector('#timeline:not([hidden])')
    page.wait_for_selector('.moments button')
    assert page.text_content('#name') == path.name  # as text, not as markup
    assert page.text_content('#details').startswith('0:26 · 128 × 96')
    chips = page.locator('.moments li button:not(.more)')
    assert page.locator('.bars button').count() == chips.count()
    # It plays from the file that was dropped.
    assert page.evaluate('document.getElementById("video").src').startswith('blob:')
    told = page.text_content('#status')
    assert told.startswith(f'“{SENTENCES[0]}”:') and 'the best from' in told


def test_a_sample_brings_its_sentence(open_page):
    page = open_page()
    page.get_by_role('button', name='long.mp4').first.click()
    assert page.input_value('#sentence') == 'a man runs'
    page.locator('#other').click()
    choose(page)
    assert not page.input_value('#sentence')


def test_a_click_plays_the_moment(page, running, beach):
    answer = page.request.post(f'{running.url}/v1/videos/{beach}/queries',
                               data=dict(queries=[SENTENCES[1]])).json()
    start, end, _ = answer['results'][0]['windows'][0]
    wait_until(page, 'document.getElementById("video").readyState >= 2')
    bar = page.locator('.lane').nth(1).locator('.bars button').first
    assert start - 0.05 <= seek(page, bar.click) <= start + 0.3
    assert bar.get_attribute('class') == 'on'
    assert f'{start % 60:.1f} seconds' in bar.get_attribute('aria-label')
    # Bars lie where the moments are.
    box, axis = bar.bounding_box(), page.locator('#axis').bounding_box()
    assert (box['x'] - axis['x']) / axis['width'] * 24 == pytest.approx(start, abs=0.15)
    assert box['width'] / axis['width'] * 24 == pytest.approx(min(end, 24) - start, abs=0.3)
    middle = dict(x=axis['width'] / 2, y=5)
    assert seek(page, lambda: page.locator('#axis').click(position=middle)) == pytest.approx(
        12, abs=0.5)
    colours = {page.locator('.lane').nth(i).locator('.curve').evaluate(
        'element => getComputedStyle(element).stroke') for i in range(2)}
    assert len(colours) == 2


def test_words_show_their_attention(page):
    page.locator('.words button', has_text='red').first.hover()
    assert page.locator('.lane .word').count() == 1
    assert page.text_content('#hint') == 'Dashed: attention to “red”'
    page.locator('.phrases button').first.focus()
    assert 'attention to phrase 1' in page.text_content('#hint')
    assert page.locator('.words button.lit').count() == 6
    page.locator('#sentence').focus()
    assert page.locator('.lane .word').count() == 0


def test_export(page):
    expected = {
        'JSON': lambda text: [row['query'] for row in json.loads(text)] == SENTENCES,
        'CSV': lambda text: text.startswith('video,query,rank,start,end,score\n'),
        'FFmpeg cuts': lambda text: "file 'beach.webm'" in text,
        'EDL': lambda text: 'FCM: NON-DROP FRAME' in text}
    for name, check in expected.items():
        with page.expect_download() as download:
            page.get_by_role('button', name=name).click()
        assert check(download.value.path().read_text()), name
        assert download.value.suggested_filename.startswith('beach.')


def test_errors_are_told(open_page, tmp_path, running, beach):
    page = open_page()
    (tmp_path / 'a.mp4').write_bytes(b'garbage' * 1000)
    page.set_input_files('#file', str(tmp_path / 'a.mp4'))
    page.wait_for_selector('#alert:not([hidden])')
    assert page.text_content('#alert p').startswith('no video, expected MP4')
    assert page.locator('#choose').is_visible()
    page.get_by_role('button', name='Dismiss').click()
    assert page.locator('#alert').is_hidden()
    choose(page)
    page.route('**/queries', lambda route: route.fulfill(
        status=503, body='{"error": "256 sentences wait"}', content_type='application/json'))
    page.fill('#sentence', 'a dog')
    page.keyboard.press('Enter')
    page.wait_for_selector('.query.bad')
    assert '256 sentences wait' in page.text_content('.query .state')
    page.unroute('**/queries')
    page.get_by_role('button', name='Try again').click()
    page.wait_for_selector('.moments button')
    page.route('**/queries', lambda route: route.fulfill(
        status=422, body='{"error": "unknown word"}', content_type='application/json'))
    page.fill('#sentence', 'a helicopter')
    page.keyboard.press('Enter')
    page.get_by_role('button', name='Change it').click()
    assert page.input_value('#sentence') == 'a helicopter'
    assert page.locator('.query').count() == 1


def test_keyboard_alone(open_page, beach):
    page = open_page()
    press = page.keyboard.press
    for _ in range(12):
        press('Tab')
        if 'beach' in (page.evaluate('document.activeElement.textContent') or ''):
            break
    press('Enter')
    page.wait_for_selector('#timeline:not([hidden])')
    assert page.evaluate('document.activeElement.id') == 'sentence'
    page.keyboard.type(SENTENCES[0])
    press('Enter')
    page.wait_for_selector('.moments button')
    wait_until(page, 'document.getElementById("video").readyState >= 2')
    press('Escape')
    press('n')
    wait_until(page, 'document.querySelectorAll(".bars button.on").length === 1')
    press('Space')
    press('/')
    assert page.evaluate('document.activeElement.id') == 'sentence'
    page.locator('#axis').focus()
    seek(page, lambda: press('Home'))
    assert seek(page, lambda: press('ArrowRight')) == pytest.approx(1, abs=0.3)
    assert page.get_attribute('#axis', 'aria-valuetext') == '1.0 seconds'
    for _ in range(40):
        press('Tab')
        if 'Moment 1 of' in (page.evaluate('document.activeElement.ariaLabel') or ''):
            break
    press('Enter')
    wait_until(page, 'document.querySelectorAll(".moments button.on").length === 1')


@pytest.mark.parametrize('options', [
    dict(viewport=dict(width=360, height=740), has_touch=True, is_mobile=True),
    dict(color_scheme='dark')], ids=['phone', 'dark'])
def test_other_looks(open_page, beach, options):
    page = open_page(**options)
    choose(page)
    ask(page, SENTENCES[0])
    width = options.get('viewport', dict(width=1280))['width']
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    for name in ('.bars button', '#axis', '#form button'):
        box = page.locator(name).first.bounding_box()
        assert box['x'] >= 0 and box['x'] + box['width'] <= width + 1
    # Text against what is behind it, by WCAG's measure.
    pairs = page.evaluate('''() => [
            "#details", ".moments button", "#hint", ".tag", "#form button"].map(name => {
        const element = document.querySelector(name);
        let behind = element, colour;
        do { colour = getComputedStyle(behind).backgroundColor; behind = behind.parentElement; }
        while (behind && !/^rgb\\(/.test(colour));
        return [name, getComputedStyle(element).color, colour];
    })''')
    for name, text, behind in pairs:
        assert contrast(text, behind) >= 4.5, (name, text, behind)


def contrast(a, b):
    def luminance(colour):
        parts = [float(x) / 255 for x in colour[colour.index('(') + 1:-1].split(',')[:3]]
        parts = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_a_token_is_asked_for(open_page, running, monkeypatch, beach):
    page = open_page()
    monkeypatch.setattr(running.service, 'token', 'correct-horse-battery')
    page.reload()
    page.wait_for_selector('#login[open]')
    page.keyboard.type('correct-horse-battery')
    page.keyboard.press('Enter')
    choose(page)
    wait_until(page, 'document.getElementById("video").readyState >= 2')
    ask(page, SENTENCES[0])
