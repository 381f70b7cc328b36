"""Videos: the frames of clips are those that the ffmpeg command line gives, bad files are told."""

import bisect
import gc
import itertools
import math
import os
import pathlib
import re
from fractions import Fraction

import numpy as np
import pytest

from data_pipelines import video
from data_pipelines.errors import ConfigError, DataError
from tests.helpers.paths import REAL
from tests.helpers.videos import H264, ffmpeg, make, read, scene

SIZE = 32
AUDIO = '-f lavfi -i sine=d='


def vary(path):
    """Frames of 0.1 s, then none for 5 s, then frames of 0.3 and 0.1 s."""
    ffmpeg(scene(16), "-vf select='lt(n,23)+gt(n,73)*(lt(n,110)*not(mod(n,3))+gt(n,110))'",
           '-fps_mode vfr', H264, '-pix_fmt yuv420p', path)


def rotate(path, option):
    ffmpeg(option, '-i', make(path.with_name('plain.mp4'), 7), '-c copy', path)


def cut(path):
    """An edit list: playing starts between key frames."""
    make(path.with_name('plain.mp4'), 9, codec=f'{H264} -pix_fmt yuv420p -bf 2 -g 40')
    ffmpeg('-ss 1.33 -i', path.with_name('plain.mp4'), '-c copy', path)


def late(path):
    """The sound starts 3 s before the picture."""
    ffmpeg(AUDIO + '9 -itsoffset 3.04', scene(6), H264, '-pix_fmt yuv420p', path)


def live(path):
    """A header without a duration."""
    ffmpeg(scene(7), '-c:v libvpx -deadline realtime -cpu-used 8 -live 1 -f webm', path)


SOURCES = {  # name: what makes the file, width and height as shown
    'constant.mp4': lambda path: make(path, 12),
    'halves.mp4': lambda path: make(path, 9),  # 4.5 clips
    'almost_halves.mp4': lambda path: make(path, 8.9),
    'variable.mp4': vary,
    'film.mp4': lambda path: make(path, 8, '24000/1001'),
    'film.mkv': lambda path: make(path, 8, '24000/1001'),
    'ntsc.mov': lambda path: make(path, 8, '30000/1001'),
    'sixty.mp4': lambda path: make(path, 7, '60'),
    'turned_90.mp4': lambda path: rotate(path, '-display_rotation 90'),
    'turned_180.mp4': lambda path: rotate(path, '-display_rotation 180'),
    'mirrored_270.mp4': lambda path: rotate(path, '-display_rotation 270 -display_hflip'),
    'vp8.webm': lambda path: make(path, 7, codec='-c:v libvpx -deadline realtime -cpu-used 8'),
    'alpha.webm': lambda path: make(
        path, 5, codec='-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt yuva420p'),
    'live.webm': live,
    'edited.mp4': cut,
    'late.mkv': late,
    'late.mp4': late,
    'shifted.mkv': lambda path: make(path, 7, codec=f'{H264} -output_ts_offset 5'),
    'shifted.flv': lambda path: make(path, 7, codec=f'{H264} -output_ts_offset 5'),
    'shifted.mp4': lambda path: make(path, 7, codec=f'{H264} -output_ts_offset 5'),
    'slow.mkv': lambda path: make(path, 400, '1/40'),
    'sparse_keys.mkv': lambda path: make(path, 9, codec=f'{H264} -bf 2 -g 9999'),
    'stream.ts': lambda path: make(path, 7),
    'fragments.mp4': lambda path: make(
        path, 7, codec=f'{H264} -movflags frag_keyframe+empty_moov -g 20'),
    'old.avi': lambda path: make(path, 7, codec='-c:v mpeg4 -bf 2'),
    'raw.h264': lambda path: make(path, 7, '25'),
    'raw.m2v': lambda path: make(path, 7, '25', codec='-c:v mpeg2video'),
    'drawing.gif': lambda path: make(path, 5, codec='-c:v gif'),
    'hdr.mp4': lambda path: make(path, 5, codec=(
        f'{H264} -pix_fmt yuv420p10le -color_primaries bt2020 -color_trc smpte2084 '
        '-colorspace bt2020nc')),
    'full_range.mp4': lambda path: make(
        path, 5, codec=f'{H264} -pix_fmt yuvj420p -colorspace bt709'),
    'interlaced.mpg': lambda path: make(
        path, 5, '25', codec='-c:v mpeg2video -flags +ilme+ildct'),
    'anamorphic.mp4': lambda path: make(path, 5, codec=f'{H264} -vf setsar=4/3'),
    'wide.mp4': lambda path: make(path, 5, size='256x64'),
    'odd.mkv': lambda path: make(
        path, 5, size='72x96', codec='-vf format=yuv444p,crop=69:93:exact=1 -c:v ffv1'),
    'odd_wide.mkv': lambda path: make(
        path, 5, size='96x72', codec='-vf format=yuv444p,crop=93:69:exact=1 -c:v ffv1'),
    'long.mp4': lambda path: make(path, 150, '5'),
    'one_frame.mp4': lambda path: make(path, 0.1),
}
SHAPES = {'turned_90.mp4': (48, 64), 'mirrored_270.mp4': (48, 64), 'wide.mp4': (256, 64),
          'odd.mkv': (69, 93), 'odd_wide.mkv': (93, 69)}


def number(time, period):
    return math.floor(time / period + Fraction(1, 2))


def newest_filter(times, end, period):
    """Row n is the last frame before the clip's middle; the first rows wait for a frame."""
    first = number(times[0], period)
    return [bisect.bisect_left(times, (max(row, first) + Fraction(1, 2)) * period) - 1
            for row in range(number(end, period))]


def oldest_filter(times, end, period):
    """FFmpeg's filter `fps` before 2018, as its queue: only the first frame in it is kept."""
    queue, rows = 0, []
    for i, time in enumerate(times):
        due = number(time - times[0], period) - len(rows)
        if i and due > 0:
            rows += [queue] * due
            queue = i
    rows.append(queue)
    return [rows[0]] * number(times[0], period) + rows


def shown(times, end, period):
    """Row n is what a player shows at n times the period; the first rows wait for a frame."""
    first = math.ceil(times[0] / period)
    return [bisect.bisect_right(times, max(row, first) * period) - 1
            for row in range(math.ceil(end / period))]


CHOOSE = {'middle': newest_filter, 'legacy': oldest_filter, 'start': shown}
ROWS = {  # what CHOOSE must give, in numbers
    'long.mp4': [75, 76, 75], 'halves.mp4': [5, 5, 5], 'almost_halves.mp4': [4, 5, 5]}


@pytest.mark.parametrize('name', SOURCES)
def test_frames_of_clips_are_those_of_ffmpeg(name, tmp_path):
    path, shape = tmp_path / name, SHAPES.get(name, (64, 48))
    SOURCES[name](path)
    every = read(path, SIZE, shape=shape)
    end = every.times[-1] + every.lengths[-1]
    assert len(every.times) == len({picture.tobytes() for picture in every.pictures})
    rules = video.RULES if end > 2.1 else ['start']
    rows = {rule: list(video.clip_frames(path, clip_length=2, rule=rule, size=SIZE))
            for rule in rules}
    for rule in rules:
        np.testing.assert_array_equal(
            rows[rule], every.pictures[CHOOSE[rule](every.times, end, 2)], rule)
    if 'middle' in rules:
        by_filter = read(path, SIZE, filters='fps=1/2', shape=shape).pictures
        np.testing.assert_array_equal(rows['middle'], by_filter)
    if name in ROWS:
        assert [len(rows[rule]) for rule in video.RULES] == ROWS[name]

    found = video.probe(path)
    assert (found.width, found.height) == shape
    assert found.duration == pytest.approx(float(end), abs=0.11)


def join(path):
    """A recording that begins between key frames."""
    whole = make(path.with_name('whole.ts'), 8, codec=f'{H264} -bf 2 -g 20')
    path.write_bytes(whole.read_bytes()[188 * 50:])


def still(path):
    """Theora has packets without content where nothing moves."""
    ffmpeg('-f lavfi -i testsrc=s=64x48:r=10:d=8', AUDIO + '8', '-c:v libtheora', path)


def two(path):
    ffmpeg(scene(8), '-f lavfi -i color=s=128x96:r=5:d=3 -map 0 -map 1', H264, path)


@pytest.mark.parametrize(('name', 'source'), [
    ('joined.ts', join), ('still.ogv', still), ('two.mkv', two),
    ('drawing.apng', lambda path: make(path, 5, codec='-c:v apng'))])
def test_odd_streams_are_read_as_by_ffmpeg(name, source, tmp_path):
    source(tmp_path / name)
    expected = read(tmp_path / name, SIZE, filters='fps=1/2').pictures
    assert len(expected) > 2
    np.testing.assert_array_equal(list(video.clip_frames(
        tmp_path / name, clip_length=2, rule='middle', size=SIZE)), expected)


def test_frames_at_a_rate_are_those_of_ffmpeg(tmp_path):
    path = make(tmp_path / 'film.mp4', 3, '24000/1001')
    np.testing.assert_array_equal(list(video.frames_at(path, rate=30, size=SIZE)),
                                  read(path, SIZE, filters='fps=30').pictures)


@pytest.mark.parametrize(('seconds', 'rate', 'count'), [
    (0.8, '2', 2), (1.5, '2', 3), (2.05, '1', 2)])
def test_a_video_of_about_a_clip_is_sampled_more_often(seconds, rate, count, tmp_path):
    path = make(tmp_path / 'short.mp4', seconds, '20')
    expected = read(path, SIZE, filters=f'fps={rate}').pictures
    assert len(expected) == count
    np.testing.assert_array_equal(
        list(video.clip_frames(path, clip_length=2, rule='middle', size=SIZE)), expected)


def test_an_unknown_rule_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="rule 'end'.*expected one of"):
        list(video.clip_frames(tmp_path, clip_length=2, rule='end', size=SIZE))


REAL_VIDEO = REAL / 'real_clip_features'


@pytest.mark.skipif(not REAL_VIDEO.exists(), reason='needs the real video')
def test_a_real_video_has_as_many_rows_as_its_public_features():
    """By today's filter; the others give one more."""
    features = np.load(REAL_VIDEO / 'vid.npz')['features']
    rows = [sum(1 for _ in video.clip_frames(
        REAL_VIDEO / 'charades.mp4', clip_length=2, rule=rule, size=8)) for rule in video.RULES]
    assert rows == [len(features), len(features) + 1, len(features) + 1]


def shorten(path, codec=H264 + ' -pix_fmt yuv420p -g 20', whole=None):
    """Writes the first 60 % of a file of 8 s."""
    if whole is None:
        whole = path.with_name('whole' + path.suffix)
        ffmpeg(scene(8), AUDIO + '8', codec, whole)
    content = whole.read_bytes()
    path.write_bytes(content[:len(content) * 6 // 10])


def change(path, old, new, codec=H264 + ' -pix_fmt yuv420p -g 20'):
    """Writes a video with other bytes in it."""
    content = make(path.with_name('whole.mp4'), 8, codec=codec).read_bytes()
    assert old is None or old in content
    middle = len(content) // 2
    path.write_bytes(content[:middle] + new + content[middle + len(new):] if old is None
                     else content.replace(old, new))


def cover(path):
    picture = path.with_name('cover.png')
    ffmpeg(scene(1), '-frames:v 1', picture)
    ffmpeg(AUDIO + '2 -i', picture, '-map 0 -map 1 -c:v copy -disposition:v:0 attached_pic', path)


def twice(path):
    path.write_bytes(2 * make(path.with_name('once.ts'), 4).read_bytes())


KEYS = ('-encryption_scheme cenc-aes-ctr -encryption_key 76a6c65c5ea762046bd749a2e632ccbb '
        '-encryption_kid a7e61c373e219033c21091fa607bf3b8')
BAD = {  # name: what makes it, what is said
    'missing.mp4': (lambda path: None, 'no such file, expected a video'),
    'folder.mp4': (lambda path: path.mkdir(), 'a folder, expected a video'),
    'empty.mp4': (lambda path: path.touch(), "can't be read as a video: empty"),
    'text.mp4': (lambda path: path.write_text('a dog runs\n' * 99),
                 "can't be read as a video: Invalid data"),
    'text.txt': (lambda path: path.write_text('a dog runs\n' * 99), 'a text, expected a video'),
    'page.mp4': (lambda path: path.write_text('<!doctype html>'), 'not the file but a web page'),
    'pointer.mp4': (lambda path: path.write_text('version https://git-lfs.github.com/spec/v1'),
                    'not the file but a pointer of Git LFS'),
    'list.m3u8': (lambda path: path.write_text(
        f'#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{make(path.with_name("a.ts"), 4).name}\n'
        '#EXT-X-ENDLIST\n'), 'a list of other files, expected a video'),
    'list.ffconcat': (lambda path: path.write_text(
        f'ffconcat version 1.0\nfile {make(path.with_name("a.mp4"), 4).name}\n'),
        'a list of other files, expected a video'),
    'picture.png': (lambda path: ffmpeg(scene(1), '-frames:v 1', path),
                    'a picture, expected a video'),
    'picture.jpg': (lambda path: ffmpeg(scene(1), '-frames:v 1', path),
                    'a picture, expected a video'),
    'sound.m4a': (lambda path: ffmpeg(AUDIO + '2', path), 'has no video, found audio'),
    'cover.m4a': (cover, 'has no video, found a picture and audio'),
    'no_frame.mkv': (lambda path: ffmpeg(scene(1), H264, '-frames:v 0', path),
                     "can't be read as a video: End of file"),
    'no_frame.mp4': (lambda path: ffmpeg(scene(1), H264, '-frames:v 0', path),
                     'has no video, found nothing'),
    'unknown.mp4': (lambda path: change(path, b'avc1', b'zzz1'), 'FFmpeg has no decoder'),
    'locked.mp4': (lambda path: make(path, 3, codec=f'{H264} {KEYS}'),
                   'encrypted, expected a video that plays without a key'),
    'turned_30.mp4': (lambda path: rotate(path, '-display_rotation 30'),
                      'turned by .* degrees, expected quarters'),
    'cut_index_last.mp4': (shorten, "can't be read as a video: Invalid data"),
}
BREAKS_OFF = {
    'cut_index_first.mp4': (lambda path: shorten(path, f'{H264} -g 20 -movflags +faststart'),
                            'ends after 4.* of 8.00 s, truncated|damaged after'),
    'cut.mkv': (shorten, r'ends after [45].* of 8.0. s, truncated'),
    'cut.webm': (lambda path: shorten(path, '-c:v libvpx -deadline realtime -cpu-used 8'),
                 r'ends after [45].* of 8.0. s, truncated'),
    'cut.flv': (shorten, r'ends after [45].* of 8.* s, truncated|damaged after'),
    'damaged.mp4': (lambda path: change(path, None, bytes(range(256))), r'damaged after 4.00 s'),
    'twice.ts': (twice, 'time stamps go back from 3.9.* to 0.0.* s, expected one recording'),
}


def refusal(path):
    with pytest.raises(DataError) as error:
        list(video.clip_frames(path, clip_length=2, rule='middle', size=8))
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('name', BAD)
def test_what_is_no_video_is_refused_in_one_line(name, tmp_path):
    path, (prepare, said) = tmp_path / name, BAD[name]
    prepare(path)
    text = refusal(path)
    assert re.search(said, text), text
    with pytest.raises(DataError, match=re.escape(text)):
        video.probe(path)


@pytest.mark.parametrize('name', BREAKS_OFF)
def test_what_breaks_off_is_told_when_it_does(name, tmp_path):
    path, (prepare, said) = tmp_path / name, BREAKS_OFF[name]
    prepare(path)
    assert re.search(said, refusal(path)), refusal(path)
    video.probe(path)
    next(video.clip_frames(path, clip_length=2, rule='middle', size=8))  # decoded as it is read


def test_eight_hours_with_a_frame_every_forty_seconds(tmp_path):
    path = make(tmp_path / 'hours.mkv', 8 * 3600, '1/40', codec=H264)
    rows, pictures, last = 0, 0, None
    for picture in video.clip_frames(path, clip_length=2, rule='middle', size=8):
        rows += 1
        pictures += picture is not last
        last = picture
    assert (rows, pictures) == (8 * 3600 / 2, 8 * 3600 / 40)  # a frame is resized once


def test_any_name_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = 'http:é %03d.mp4'
    make(tmp_path / 'plain.mp4', 3).rename(path)
    assert len(list(video.clip_frames(path, clip_length=2, rule='start', size=8))) == 2


def test_pictures_change_their_size_midway(tmp_path):
    first, second = make(tmp_path / 'a.ts', 4), make(tmp_path / 'b.ts', 4, size='48x96')
    ffmpeg('-i', second, '-c copy -output_ts_offset 4', tmp_path / 'c.ts')
    both = tmp_path / 'both.ts'
    both.write_bytes(first.read_bytes() + (tmp_path / 'c.ts').read_bytes())
    rows = list(video.clip_frames(both, clip_length=2, rule='start', size=SIZE))
    np.testing.assert_array_equal(rows[:2], list(
        video.clip_frames(first, clip_length=2, rule='start', size=SIZE)))
    assert {row.shape for row in rows} == {(SIZE, SIZE, 3)}
    assert len(rows) >= 4


@pytest.mark.skipif(not pathlib.Path('/proc/self/statm').exists(), reason='needs /proc')
def test_memory_does_not_grow_with_the_video(tmp_path):
    """Nor waits for the collector of cycles: 300 frames of 115 kB would be 34 MB."""
    path = make(tmp_path / 'a.avi', 330, '1', size='320x240', codec='-c:v mjpeg -q:v 20')

    def resident():
        pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
        return pages * os.sysconf('SC_PAGE_SIZE')

    gc.disable()
    try:
        frames = video.clip_frames(path, clip_length=1, rule='start', size=8)
        for _ in itertools.islice(frames, 30):
            pass
        before = resident()
        assert sum(1 for _ in frames) == 300
        assert resident() - before < 1e7
    finally:
        gc.enable()
