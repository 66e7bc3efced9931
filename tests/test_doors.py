"""The first seconds and the screen: what answers without torch, what fits a terminal, what is refused before work begins."""
import ast, fcntl, io, json, os, pty, re, resource, select, signal, struct, subprocess, sys, termios, time
from configparser import ConfigParser
from pathlib import Path

import pytest
import catalogue as writer
from ldm_nb.lab import cli
from ldm_nb.core import errors as process
from ldm_nb.lab.catalogue import catalogue, settings_in
from ldm_nb.lab.cli import main
from ldm_nb.lab.door import help_of, usage
from ldm_nb.evaluation.evaluate import draw_curves
from ldm_nb.lab.options import COMMANDS, wrapped_text, options_of
from ldm_nb.lab.presets import METHODS, WORLDS, as_stored, preset, presets_of

ROOT = Path(__file__).parents[1]
ENV = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
ENV.pop('COLUMNS', None)

def ldm(capsys, *argv):
    with pytest.raises(SystemExit) as e: main([str(a) for a in argv])
    out = capsys.readouterr()
    return e.value.code, out.out, out.err

@pytest.fixture(autouse=True)
def no_columns(monkeypatch): monkeypatch.delenv('COLUMNS', raising=False)

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two small runs that are called alike, and one of another method"
    d = tmp_path_factory.mktemp('doors')
    for at, method in (('x/run', 'rl2'), ('y/run', 'rl2'), ('z/other', 'varibad')):
        argv = ['train', 'gridworld', '--method', method, '--seeds', '1,2', '--frames', '1920', '--threads', '1', '--out', str(d/at)]
        with pytest.raises(SystemExit) as e: main(argv)
        assert e.value.code == 0
    return d


# Slow doors

TELL = '''
import sys
sys.argv = ['ldm', *sys.argv[1:]]
try:
    from ldm_nb.__main__ import main
    main()
finally: sys.stderr.write(f"{sorted({'torch', 'matplotlib', 'numpy', 'gymnasium', 'mujoco'} & set(sys.modules))}")
'''

@pytest.mark.parametrize('argv,status,seconds', [(['--version'], 0, .3), (['--help'], 0, .3), ([], 2, .3), (['list'], 0, 1.), (['tarin'], 2, .3),
    (['list', '--world', 'ant-goal', '--method', 'rl2'], 0, 1.), (['train', 'ant-dir', '--help'], 0, 1.), (['resume', '-h'], 0, 1.)])
def test_answers_without_torch(argv, status, seconds):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    r = subprocess.run([sys.executable, '-c', TELL, *argv], capture_output=True, encoding='utf-8', env=ENV)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert r.returncode == status and r.stderr.endswith('[]') and 'Traceback' not in r.stderr, r.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3*seconds  # the processor's; others may be at work

def test_the_ways_in(capsys):
    "`python -m ldm_nb`, the installed command, and `ldm_nb.lab.cli.main` are one; importing the package is light"
    r = subprocess.run([sys.executable, '-m', 'ldm_nb', '--version'], capture_output=True, encoding='utf-8', env=ENV)
    assert r.returncode == 0 and r.stdout == ldm(capsys, '--version')[1]
    cp = ConfigParser(); cp.read(ROOT/'settings.ini', encoding='utf-8')
    assert cp['DEFAULT']['console_scripts'] == 'ldm=ldm_nb.__main__:main'
    r = subprocess.run([sys.executable, '-c', 'import sys, ldm_nb; print(len([m for m in sys.modules if "torch" in m]))'],
                       capture_output=True, encoding='utf-8', env=ENV)
    assert r.stdout == '0\n'
    r = subprocess.run([sys.executable, '-m', 'ldm_nb', 'evaluate', 'nowhere'], capture_output=True, encoding='utf-8', env=ENV)
    assert r.returncode == 2 and r.stderr.startswith('ldm: nowhere is not a run folder')

def test_the_catalogue_is_of_today():
    assert writer.FILE.read_text(encoding='utf-8') == writer.written(writer.collected()), 'run nbs/_site/catalogue.py'

def test_the_catalogue_is_right():
    cat = catalogue()
    for w in WORLDS:
        for m in METHODS:
            for p in presets_of(w): assert {k: v for k, (v, _) in settings_in(cat, w, m, p).items()} == as_stored(preset(w, m, p))

def test_estimates_cost_no_training(capsys, monkeypatch):
    "`reproduce --list` looks speeds up; only `--measure` times rows here"
    monkeypatch.chdir(ROOT)
    timed = []
    monkeypatch.setattr(cli, 'speed', lambda e, seeds, cores: timed.append(e) or 1000.)
    code, out, _ = ldm(capsys, 'reproduce', '3-longer', '--list')
    assert code == 0 and not timed and 'estimated from ldm bench on' in out
    row, = (l for l in out.splitlines() if '| gridworld-mixreg |' in l)
    assert '~' in row.split('|')[-2]  # mixreg was never timed on a gridworld
    code, out, _ = ldm(capsys, 'reproduce', '3-longer', '--list', '--measure')
    assert code == 0 and timed and 'measured on this machine now' in out and '~' not in out

def test_estimates_without_a_history(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, _ = ldm(capsys, 'reproduce', '3', '--list', '--data', tmp_path/'runs')
    assert code == 0 and '| ? |' in out and '--measure' in out


# Ctrl-C in the first seconds

@pytest.mark.parametrize('argv', [['train', 'gridworld'], ['reproduce', '3']])
def test_interrupted_while_importing(argv, tmp_path):
    "One line and status 130, wherever the imports are"
    (tmp_path/'torch.py').write_text('import sys, time\nprint("importing", flush=True)\ntime.sleep(60)\n')
    env = ENV | dict(PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}')
    p = subprocess.Popen([sys.executable, '-m', 'ldm_nb', *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8', env=env, cwd=tmp_path)
    assert p.stdout.readline() == 'importing\n'
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=30)
    assert (p.returncode, err) == (130, 'ldm: stopped before it began\n')


# The terminal

def at_a_terminal(columns, argv, cwd, stop=None):
    "Status and screen of a command at a terminal of this width; `stop`: what is seen before Ctrl-C"
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.read(0, 1)  # until the width is set
        os.execve(sys.executable, [sys.executable, '-m', 'ldm_nb', *argv], ENV | dict(PYTHONUTF8='1'))
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', 40, columns, 0, 0))
    os.write(fd, b'\n')
    seen, end = b'', time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([fd], [], [], 1)[0]: continue
        try: more = os.read(fd, 1 << 16)
        except OSError: break
        if not more: break
        seen += more
        if stop and stop in seen: os.kill(pid, signal.SIGINT); stop = None
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), seen.decode('utf-8').replace('\r\n', '\n').lstrip('\n')

def bars(screen): return [l.rstrip() for l in re.split('[\r\n]', screen) if re.search(r'\d%', l)]

@pytest.mark.parametrize('columns', [80, 100, 140])
def test_progress_fits(columns, tmp_path):
    argv = ['train', 'gridworld-extrapolation', '--method', 'rl2-oracle', '--seeds', '0:2', '--threads', '1', '--frames', '4e4', '--out', 'run']
    code, screen = at_a_terminal(columns, argv, tmp_path)
    assert code == 0, screen
    for l in bars(screen):
        assert len(l) < columns and len(re.search(r'\|(.*)\|', l)[1]) >= 10 and re.search(r'missed \d+\.\d( |$)', l), l
    before, table = screen.split('\n| method', 1)
    assert '100%' in bars(before)[-1] and not bars(table)

def test_the_stop_message_has_a_line_of_its_own(tmp_path):
    argv = ['train', 'gridworld', '--method', 'rl2', '--seeds', '0', '--threads', '1', '--frames', '1e7', '--out', 'run']
    code, screen = at_a_terminal(80, argv, tmp_path, b'left')
    assert code == 130
    lines = screen.rstrip('\n').split('\n')
    assert lines[-1].startswith('stopped at ') and any(l.startswith('stopping after this iteration') for l in lines)

def test_the_bar_survives_its_terminal(monkeypatch, runs):
    "No stream, a closed one, one without our letters; closed twice"
    from ldm_nb.lab.presets import assemble
    from ldm_nb.lab.jobs import Sink
    class Terminal(io.TextIOWrapper):
        def isatty(self): return True
    monkeypatch.setattr(sys, 'stderr', Terminal(raw := io.BytesIO(), encoding='ascii'))
    sink = Sink(assemble(runs/'x/run', device='cpu'))
    rows = [dict(train=1., test=2., test_goals_missed=27)]
    sink.evaluated(rows)
    assert b'missed 27.0' in raw.getvalue() and b'\\u' not in raw.getvalue()
    sys.stderr.close(); sink.evaluated(rows)
    monkeypatch.setattr(sys, 'stderr', None); sink.evaluated(rows)
    sink.close(); sink.close(); sink.evaluated(rows)

@pytest.mark.parametrize('columns', [80, 100, 140])
def test_texts_fit(columns, monkeypatch, capsys, runs):
    monkeypatch.setenv('COLUMNS', str(columns))
    texts = {k: help_of(k, []) for k in COMMANDS} | dict(usage=usage(columns))
    for argv in (['list'], ['list', '--world', 'ant-goal', '--method', 'varibad', '--preset', 'reduced'], ['evaluate', runs/'x/run']):
        texts[str(argv)] = ldm(capsys, *argv)[1]
    monkeypatch.chdir(ROOT)
    texts['table'] = ldm(capsys, 'reproduce', '7', '--list')[1]
    for k, t in texts.items(): assert max(map(len, t.splitlines())) <= columns, k

@pytest.mark.parametrize('command', COMMANDS)
def test_help_is_in_words(command):
    text = help_of(command, [])
    for bad in ('STR', 'INT', 'FLOAT', "''", '(default: )', 'None', 'settings.', 'empty'): assert bad not in text
    assert text.startswith(f'usage: ldm {command} ') and text.endswith('this text\n')
    for o in options_of(COMMANDS[command]): assert len(o.about) > 5 and (o.metavar or o.kind is not str)

def test_presets_and_tasks_are_described(capsys, runs):
    _, out, _ = ldm(capsys, 'list')
    assert '  release                  all as the release executes it' in out
    rows = [l.split('|') for l in ldm(capsys, 'evaluate', runs/'x/run')[1].splitlines() if re.match(r'\| \d', l)]
    assert len(rows) == 45 and [r[2].strip() for r in rows].count('test') == 27

def test_tables_break_between_words():
    table = '| record | state |\n|---|--:|\n| gridworld-extrapolation-ldm | missing: 8 seeds |'
    lines = wrapped_text(table, 34).splitlines()
    assert max(map(len, lines)) <= 34 and [l.split()[1] for l in lines[2:]] == ['gridworld-', 'extrapolation-', 'ldm']

def test_a_wrong_device_is_the_options_fault(capsys, runs):
    code, _, err = ldm(capsys, 'resume', runs/'x/run', '--device', 'gpu')
    assert code == 2 and "device is 'gpu': choose cpu or cuda" in err and 'config.json' not in err


# Empty values

EMPTY = [(c, argv, o.name) for c in COMMANDS for o in options_of(COMMANDS[c]) if o.kind is not bool for argv in
         ([['']] if o.positional else [[f"--{o.name.replace('_', '-')}", ''], [f"--{o.name.replace('_', '-')}="], [f"--{o.name.replace('_', '-')}", ' ']])]

@pytest.mark.parametrize('command,argv,name', EMPTY, ids=[f"{c} {' '.join(a)!r}" for c, a, _ in EMPTY])
def test_an_empty_value_is_an_error(command, argv, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = [] if argv[0].strip() == '' else {'train': ['gridworld']}.get(command, ['x'] if any(o.positional for o in options_of(COMMANDS[command])) else [])
    code, out, err = ldm(capsys, command, *first, *argv)
    assert code == 2 and re.fullmatch(rf"ldm: {name} is '\s*': that is empty; give it a value, or leave it out\n", err), err
    assert not list(tmp_path.iterdir())


# Labels and files

def test_runs_of_one_name_are_told_apart(capsys, monkeypatch, runs, tmp_path):
    seen = []
    monkeypatch.setattr(cli, 'draw_curves', lambda named: seen.append(named) or draw_curves(named))
    monkeypatch.setattr(cli, 'pictures', lambda job: [])
    def plot(*names): return ldm(capsys, 'plot', *(runs/n for n in names), '--out', tmp_path/'c.png')
    assert plot('x/run', 'y/run')[0] == 0 and list(seen[-1]) == ['x/run', 'y/run']
    assert plot('x/run', 'z/other')[0] == 0 and list(seen[-1]) == ['rl2', 'varibad']
    code, _, err = plot('x/run', 'x/../x/run')
    assert code == 2 and 'one folder is named twice' in err and len(seen) == 2

@pytest.mark.parametrize('suffix,head', [('.png', b'\x89PNG'), ('.pdf', b'%PDF'), ('.svg', b'<?xml')])
def test_the_name_says_the_format(suffix, head, capsys, monkeypatch, runs, tmp_path):
    monkeypatch.setattr(cli, 'pictures', lambda job: [])
    assert ldm(capsys, 'plot', runs/'x/run', runs/'z/other', '--out', tmp_path/f'c{suffix}')[0] == 0
    assert (tmp_path/f'c{suffix}').read_bytes().startswith(head)

def test_files_are_looked_at_first(capsys, monkeypatch, runs, tmp_path):
    "Where a result cannot be written, nothing is drawn, trained or timed, and the status is 2"
    (tmp_path/'file').touch()
    for name in ('pictures', 'bench', 'record', 'reproduce'): monkeypatch.setattr(cli, name, lambda *a, **k: pytest.fail('began'))
    monkeypatch.chdir(ROOT)
    for argv, says in ((['plot', runs/'x/run', runs/'z/other', '--out', tmp_path/'none'/'c.png'], 'there is no folder'),
                       (['plot', runs/'x/run', runs/'z/other', '--out', tmp_path/'c.txt'], 'must end in .png, .pdf, .svg'),
                       (['record', runs/'x/run', '--data', tmp_path/'file'], 'not a folder'),
                       (['reproduce', '3', '--data', tmp_path/'file'/'runs'], 'not a folder'),
                       (['reproduce', '3', '--runs', tmp_path/'file'], 'not a folder'),
                       (['bench', '--json', tmp_path/'new'/'x.jsonl'], 'there is no folder')):
        code, out, err = ldm(capsys, *argv)
        assert code == 2 and says in err and not out, (argv, err)
    assert [p.name for p in tmp_path.iterdir()] == ['file']

def test_figures_say_what_they_show():
    rows = [dict(seed=s, frames=[0, 10, 20], train=[0., s, 2*s], test=[0., s, s]) for s in (1, 2, 3)]
    one = draw_curves({'rl2': rows}, dict(train=5.))
    assert [t.get_text() for t in one.legends[0].texts] == ['each seed', 'mean', 'best possible']
    two = draw_curves({'rl2': rows, 'ldm': rows[:2]})
    assert '95 %' in two.legends[0].get_title().get_text() and all(len(ax.collections) == 2 for ax in two.axes)
    assert [t.get_text() for t in two.legends[0].texts] == ['rl2 (3 seeds)', 'ldm (2 seeds)']
    draw_curves({'a': rows[:1], 'b': rows[:1]})  # of one seed there is no interval


# Text

TEXTS = [*(ROOT/'nbs/_site').glob('*.py'), *(ROOT/'ldm_nb').rglob('*.py'), ROOT/'setup.py']

@pytest.mark.parametrize('file', TEXTS, ids=lambda f: f'{f.parent.name}/{f.name}')
def test_text_has_an_encoding(file):
    "Whatever reads or writes text says in which encoding; the locale does not decide"
    for c in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if not isinstance(c, ast.Call): continue
        name, given = getattr(c.func, 'attr', getattr(c.func, 'id', '')), {k.arg: k.value for k in c.keywords}
        mode = given.get('mode') or (c.args[1] if name == 'open' and len(c.args) > 1 else None)
        text = name in ('read_text', 'write_text') or name == 'open' and isinstance(c.func, ast.Name) and 'b' not in getattr(mode, 'value', 'r')
        text = text or name == 'NamedTemporaryFile' and 'b' not in getattr(c.args[0], 'value', 'b') or 'text' in given or 'universal_newlines' in given
        assert not text or 'encoding' in given, f'{file.name}:{c.lineno}'

def test_tools_in_an_ascii_locale(tmp_path):
    env = ENV | dict(LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    page, copy = ROOT/'nbs/lab/850_jobs.ipynb', tmp_path/'page.ipynb'
    copy.write_bytes(page.read_bytes())
    r = subprocess.run([sys.executable, ROOT/'nbs/_site/nb.py', 'show', page], capture_output=True, env=env)
    assert r.returncode == 0 and '█' in r.stdout.decode('utf-8')
    assert subprocess.run([sys.executable, ROOT/'nbs/_site/nb.py', 'write', copy], input=r.stdout, env=env).returncode == 0
    assert copy.read_bytes() == page.read_bytes()
    code = f'import sys; sys.path.insert(0, {str(ROOT/"nbs/_site")!r}); import readme; assert readme.readme()'
    assert subprocess.run([sys.executable, '-c', code], env=env).returncode == 0
