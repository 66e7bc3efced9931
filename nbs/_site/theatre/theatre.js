// The page of the belief theatre. `agent.js` has the agents, `robots.js` the robots, `networks.js` weights and recorded poses.
'use strict';
(() => {
  const PIXELS = 44, NAMES = Object.keys(NETWORKS), nets = {};
  const network = name => nets[name] ??= unpack(NETWORKS[name]);
  const believes = name => Boolean(believer(network(name)));
  const imagines = name => believer(network(name)) === 'vae.encoder';
  const $ = id => document.getElementById(id);
  const about = name => `seed ${NETWORKS[name].seed}, ${Math.round(NETWORKS[name].frames/1e6) || (NETWORKS[name].frames/1e6).toFixed(2)} million frames`;
  const numbersOf = returns => returns.map(r => r.toFixed(1)).join(', ');
  const make = (tag, attributes = {}, ...children) => {
    const svg = ['svg', 'rect', 'circle', 'path', 'polyline', 'text', 'title'].includes(tag);
    const e = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) k.startsWith('on') ? e.addEventListener(k.slice(2), v) : e.setAttribute(k, v);
    e.append(...children);
    return e;
  };

  // Colours: by the odds of the goal, as in the package's animation
  const shade = p => {
    const q = Math.min(Math.max(p, 1e-6), 1 - 1e-6), x = Math.min(Math.max((Math.log(q/(1 - q)) + 5)/7.2, 0), 1);
    return `rgb(${[255, 255, 255].map((a, i) => Math.round(a + ([8, 48, 107][i] - a)*x)).join()})`;
  };
  const chance = reward => (reward - MISS)/(HIT - MISS);
  const centre = ([x, y]) => [(x + .5)*PIXELS + 2, (SIDE - 1 - y + .5)*PIXELS + 2];
  const WORDS = {train: 'a training goal', test: 'a test goal', never: 'in no task'};

  function map(label, choose) {                                         // an empty map; a click or an arrow key chooses a cell
    const size = SIDE*PIXELS + 4, at = {cell: [3, 4]};
    const svg = make('svg', {viewBox: `0 0 ${size} ${size}`, width: size, height: size, role: 'img', 'aria-label': label, class: 'map'});
    const cells = CELLS.map(cell => {
      const [x, y] = centre(cell), title = make('title');
      title.textContent = `cell ${cell.join(', ')}: ${WORDS[kindOf(cell)]}`;
      const rect = make('rect', {x: x - PIXELS/2, y: y - PIXELS/2, width: PIXELS, height: PIXELS, fill: '#fff', stroke: '#bbb'}, title);
      if (choose) rect.addEventListener('click', () => choose(cell));
      svg.append(rect);
      if (kindOf(cell) === 'train') svg.append(make('rect', {x: x - PIXELS/2 + 3, y: y - PIXELS/2 + 3, width: PIXELS - 6, height: PIXELS - 6,
        fill: 'none', stroke: '#444', 'stroke-dasharray': '2 3', 'pointer-events': 'none'}));
      return rect;
    });
    const marks = document.createElementNS('http://www.w3.org/2000/svg', 'g');
    marks.setAttribute('pointer-events', 'none'); svg.append(marks);
    if (choose) {
      svg.setAttribute('tabindex', 0); svg.setAttribute('role', 'application');
      svg.addEventListener('keydown', e => {
        const a = {ArrowUp: 1, ArrowRight: 2, ArrowDown: 3, ArrowLeft: 4}[e.key];
        if (a) { e.preventDefault(); choose(move(at.cell, a)); }
      });
    }
    return {svg, marks, at, paint: values => values.forEach((v, i) => cells[i].setAttribute('fill', typeof v === 'string' ? v : shade(v)))};
  }
  const cross = cell => { const [x, y] = centre(cell); return make('path', {d: `M${x - 14} ${y - 14}l28 28m0 -28l-28 28`, stroke: '#D55E00', 'stroke-width': 4}); };
  const agent = cell => { const [x, y] = centre(cell); return make('circle', {cx: x, cy: y, r: 9, fill: '#E69F00', stroke: '#222', 'stroke-width': 1.5}); };
  const trail = cells => make('polyline', {points: cells.map(c => centre(c).join()).join(' '), fill: 'none', stroke: '#E69F00', 'stroke-width': 4, 'stroke-opacity': .75, 'stroke-linejoin': 'round'});
  const selector = (id, label, names, chosen, change) => make('label', {}, label + ' ', (() => {
    const s = make('select', {id, onchange: e => change(e.target.value)});
    for (const n of names) s.append(new Option(n, n, n === chosen, n === chosen));
    return s;
  })());

  const legend = () => {                                                // what the marks of the maps mean
    const key = (drawing, words) => make('span', {class: 'key'}, make('svg', {viewBox: '0 0 24 24', width: 20, height: 20}, drawing), words);
    const box = more => make('rect', {x: 2, y: 2, width: 20, height: 20, stroke: '#777', fill: '#fff', ...more});
    return make('p', {class: 'legend'},
      key(box({'stroke-dasharray': '2 3', stroke: '#444'}), 'training goal'), key(box({}), 'test goal, or one of the four cells at the start that are in no task'),
      key(make('circle', {cx: 12, cy: 12, r: 7, fill: '#E69F00', stroke: '#222'}), 'agent'), key(make('path', {d: 'M4 4l16 16m0 -16l-16 16', stroke: '#D55E00', 'stroke-width': 3}), 'goal'),
      key(box({fill: shade(.02)}), 'unlikely'), key(box({fill: shade(.2)}), 'possible'), key(box({fill: shade(.9)}), 'likely goal'));
  };

  // 1. Watch
  const watch = {goal: [3, 4], t: 0, sides: [], timer: 0};
  const episodeOf = t => Math.min(Math.floor(Math.max(t - 1, 0)/HORIZON), EPISODES - 1);
  const story = (name, moments, t) => {                                 // what has been seen until step t
    const first = moments.findIndex(m => m.reward === HIT), last = moments.slice(1 + HORIZON*(EPISODES - 1)).findIndex(m => m.reward === HIT);
    if (first < 0 || first > t) return t < STEPS ? `${name} has not found it yet.` : `${name} never finds it.`;
    const shortest = watch.goal[0] + watch.goal[1];
    return `${name} first finds it in episode ${episodeOf(first) + 1}. ` + (t < STEPS ? '' :
      last < 0 ? 'In episode 4 it does not return to it.' : `In episode 4 it needs ${last + 1} steps (shortest: ${Math.max(shortest, 1)}).`);
  };
  function tell(t) {
    const words = `Goal (${watch.goal.join(', ')}), ${WORDS[kindOf(watch.goal)]}. ` + (t ? watch.sides.map(s => story(s.name, s.moments, t)).join(' ') : 'Press Play.');
    if ($('outcome').textContent !== words) $('outcome').textContent = words; // a screen reader reads every change
  }
  function choose(goal) {
    if (kindOf(goal) === 'never') return;
    watch.goal = goal;
    for (const s of watch.sides) s.moments = play(network(s.name), goal);
    show(watch.t);
  }
  function show(t) {
    watch.t = t; $('step').value = t;
    tell(t);
    $('moment').textContent = `episode ${episodeOf(t) + 1}, step ${t - HORIZON*episodeOf(t)}`;
    for (const s of watch.sides) {
      const m = s.moments[t], start = HORIZON*episodeOf(t), learned = s.kind.value === 'learned' && believes(s.name);
      s.map.paint(learned ? [...belief(network(s.name), m.latent, {dropout: NETWORKS[s.name].dropout})].map(chance) : exact(s.moments, t));
      s.map.at.cell = watch.goal;
      s.map.marks.replaceChildren(trail([[0, 0], ...s.moments.slice(start + 1, t + 1).map(x => x.reached)]), cross(watch.goal), agent(t ? m.reached : [0, 0]));
      s.seed.textContent = about(s.name);
      s.kind.options[0].disabled = !believes(s.name);
      if (!believes(s.name)) s.kind.value = 'exact';
      s.returns.textContent = m.returns.map((r, k) => t && k <= episodeOf(t) ? r.toFixed(1) : '–').join(', ');
    }
  }
  function stop() { clearInterval(watch.timer); watch.timer = 0; $('play').textContent = 'Play'; }
  function start() {
    if (watch.timer) return stop();
    if (watch.t >= STEPS) show(0);
    $('play').textContent = 'Pause';
    watch.timer = setInterval(() => watch.t < STEPS ? show(watch.t + 1) : stop(), 150);
  }
  function side(i, name) {
    const s = {name, map: map(`belief and path of agent ${i + 1}; arrow keys move the goal`, choose), returns: make('output'), kind: make('select', {'aria-label': 'which belief', onchange: () => show(watch.t)})};
    s.kind.append(new Option('what its decoder expects', 'learned'), new Option('exact belief of a perfect observer', 'exact'));
    s.box = make('div', {class: 'side'}, selector('agent' + i, `Agent ${i + 1}:`, NAMES, name, n => { s.name = n; s.kind.value = 'learned'; choose(watch.goal); }), make('br'), s.kind, make('br'), s.seed = make('small', {}), make('br'), s.map.svg, make('p', {}, 'return of each episode: ', s.returns));
    return s;
  }

  // 2. Scoreboard
  function score(name) {
    const p = network(name), values = CELLS.map(c => {
      const r = play(p, c)[STEPS], best = HORIZON - Math.max(c[0] + c[1], 1) + 1 - .1*(Math.max(c[0] + c[1], 1) - 1);
      return {found: r.returns[3] > MISS*HORIZON + .5, perfect: r.returns[3] > best - .05};
    });
    const count = kind => CELLS.filter((c, i) => kindOf(c) === kind && values[i].found).length;
    const m = map(`goals that ${name} reaches in episode 4`);
    m.svg.classList.add('score');
    m.paint(CELLS.map((c, i) => kindOf(c) === 'never' ? '#bbb' : values[i].perfect ? '#0b6b3a' : values[i].found ? '#8fd1a8' : '#fff'));
    return make('div', {class: 'side'}, make('b', {}, name), make('br'), make('small', {}, about(name)), make('br'), m.svg, make('p', {}, `reaches ${count('test')} of 27 test goals and ${count('train')} of 18 training goals in episode 4`));
  }
  function scoreboard() {
    $('scores').replaceChildren(make('p', {}, 'playing 45 goals with each agent …'));
    setTimeout(() => $('scores').replaceChildren(...NAMES.map(score)), 20);
  }

  // 3. You against the agent
  const game = {};
  function deal() {
    const tests = CELLS.filter(c => kindOf(c) === 'test');
    Object.assign(game, {goal: tests[Math.floor(Math.random()*tests.length)], state: begin(), path: [[0, 0]], seen: new Set()});
    drawGame();
  }
  function turn(a) {
    if (game.state.step >= STEPS) return;
    game.state = act(game.state, game.goal, a);
    game.seen.add(game.state.reached.join());
    game.path = game.state.end ? [[0, 0]] : [...game.path, game.state.reached];
    drawGame();
  }
  function drawGame() {
    const {state, goal} = game, done = state.step >= STEPS, found = state.found.some(Boolean);
    game.map.paint(CELLS.map(c => found && same(c, goal) ? '#ffd9a8' : game.seen.has(c.join()) ? '#dfe7ee' : '#fff'));
    game.map.marks.replaceChildren(trail(game.path), ...(done || found ? [cross(goal)] : []), agent(state.cell));
    if (!done) return $('yours').replaceChildren(`episode ${Math.floor(state.step/HORIZON) + 1}, step ${state.step % HORIZON}; your returns: ${numbersOf(state.returns)}`);
    const row = (who, returns) => make('tr', {}, make('th', {}, who), ...returns.map(r => make('td', {}, r.toFixed(1))));
    $('yours').replaceChildren('Finished. Returns of the four episodes:', make('table', {}, row('you', state.returns), ...NAMES.map(n => row(n, play(network(n), goal)[STEPS].returns))));
  }

  // 4. Mix
  const mixing = {weights: new Map([['2,6', 1], ['6,4', 1]]), beta: 1, dropout: null, name: NAMES.find(imagines)};
  function mix(cell) {
    if (kindOf(cell) !== 'train') { $('imagined').textContent = 'Choose training goals: cells with a dotted outline.'; return; }
    const k = cell.join();
    if (mixing.weights.has(k)) { if (mixing.weights.size > 1) mixing.weights.delete(k); } else mixing.weights.set(k, 1);
    sliders(); drawMix();
  }
  const range = (label, low, high, step, value, change) => make('label', {class: 'range'}, label + ' ', make('input', {type: 'range', min: low, max: high, step, value, oninput: e => { e.target.nextSibling.textContent = ' ' + e.target.value; change(+e.target.value); drawMix(); }}), make('output', {}, ' ' + value));
  function sliders() {
    const dropout = mixing.dropout ?? NETWORKS[mixing.name].dropout;
    $('sliders').replaceChildren(
      ...[...mixing.weights].map(([k, w]) => range(`share of goal (${k.replace(',', ', ')})`, 0, 2, .05, w, v => mixing.weights.set(k, v))),
      range('beta (above 1 a weight can be negative)', 1, 3, .1, mixing.beta, v => { mixing.beta = v; }),
      range('dropout of the decoder\'s input', 0, .9, .1, dropout, v => { mixing.dropout = v; }));
  }
  function drawMix() {
    const goals = [...mixing.weights.keys()].map(k => k.split(',').map(Number)), weights = stretch([...mixing.weights.values()], mixing.beta);
    const out = imagine(network(mixing.name), goals, weights, {dropout: mixing.dropout ?? NETWORKS[mixing.name].dropout});
    mixing.map.paint([...out].map(chance));
    mixing.map.marks.replaceChildren(...goals.map((g, i) => { const [x, y] = centre(g); const t = make('text', {x, y: y + 5, 'text-anchor': 'middle', 'font-size': 14, 'font-weight': 700, fill: '#D55E00', stroke: '#fff', 'stroke-width': 3, 'paint-order': 'stroke'}); t.textContent = weights[i].toFixed(2); return t; }));
    const best = out.indexOf(Math.max(...out));
    $('imagined').textContent = `The highest imagined reward is ${out[best].toFixed(2)}, at (${CELLS[best].join(', ')}), ${WORDS[kindOf(CELLS[best])]}.`;
  }

  function gridworld() {                                                // the parts of the page that need a trained agent of the gridworld
    watch.sides = [...new Set([NAMES[0], NAMES[NAMES.length - 1]])].map((n, i) => side(i, n));
    game.map = map('your map');
    game.map.svg.setAttribute('tabindex', 0);
    game.map.svg.addEventListener('keydown', e => { const a = {ArrowUp: 1, ArrowRight: 2, ArrowDown: 3, ArrowLeft: 4, ' ': 0}[e.key]; if (a !== undefined) { e.preventDefault(); turn(a); } });
    return [
      make('h2', {}, 'Watch'),
      make('p', {}, 'Click a cell, or move the goal with the arrow keys. The agents do not see it: they get 1 on the goal and -0.1 elsewhere.'), legend(),
      make('p', {class: 'controls'}, make('button', {id: 'play', onclick: start}, 'Play'), ' ', make('input', {id: 'step', type: 'range', min: 0, max: STEPS, value: 0, 'aria-label': 'step', oninput: e => { stop(); show(+e.target.value); }}), ' ', make('output', {id: 'moment'})),
      make('div', {class: 'row'}, ...watch.sides.map(s => s.box)),
      make('p', {id: 'outcome', 'aria-live': 'polite'}),
      make('h2', {}, 'Scoreboard'), make('p', {}, 'Every goal, played by every agent. Dark green: the best possible return in episode 4; light green: reached; white: not reached; grey: in no task; with an outline: training goals. These are single seeds, and seeds differ: the results pages have the means.'),
      make('p', {}, make('button', {onclick: scoreboard}, 'Play all goals')), make('div', {id: 'scores', class: 'row'}),
      make('h2', {}, 'You against the agents'), make('p', {}, 'A test goal is hidden. You have four episodes of 30 steps, like the agents. The arrow keys move you while the map has the focus, or use the buttons.'),
      make('div', {class: 'row'}, make('div', {class: 'side'}, game.map.svg), make('div', {class: 'side pad'}, ...[['↑', 1], ['←', 4], ['stay', 0], ['→', 2], ['↓', 3]].map(([t, a]) => make('button', {onclick: () => turn(a), 'aria-label': ['stay', 'up', 'right', 'down', 'left'][a], class: 'go' + a}, t)), make('button', {onclick: deal, class: 'new'}, 'New goal'))),
      make('div', {id: 'yours', 'aria-live': 'polite'})];
  }
  function mixer() {                                                    // the parts that need an agent with a latent dynamics network of its own
    mixing.map = map('imagined rewards; click training goals', mix); mixing.map.at.cell = [2, 6];
    return [
      make('h2', {}, 'Mix tasks'), make('p', {}, 'The decoder reads a weighted sum of latents and gives the rewards of a task that nobody has played. Click training goals to add or remove them. The numbers on the map are the weights, which sum to 1. (LDM with one goal then draws one cell by these rewards and makes it the only goal; this step is left out here.)'),
      make('p', {}, selector('mixer', 'Networks:', NAMES.filter(imagines), mixing.name, n => { mixing.name = n; sliders(); drawMix(); })),
      make('div', {class: 'row'}, make('div', {class: 'side'}, mixing.map.svg), make('div', {class: 'side', id: 'sliders'})), make('p', {id: 'imagined', 'aria-live': 'polite'})];
  }
  const robots = () => [
    make('h2', {}, 'Robots'), make('p', {}, 'Recorded runs, ten poses a second. Black: what the task wants, which the agents do not see. The line under an ant is its path in the episode. The half cheetahs run, but at few velocities. The ants of ant-goal have not learnt to walk to a goal.'),
    ...stage(ROBOTS, make, selector)];

  function set() {
    $('theatre').replaceChildren(...NAMES.length ? gridworld() : [], ...mixing.name ? mixer() : [], ...ROBOTS.plays.length ? robots() : []);
    if (NAMES.length) { choose(watch.goal); deal(); }
    if (mixing.name) { sliders(); drawMix(); }
  }
  document.readyState === 'loading' ? document.addEventListener('DOMContentLoaded', set) : set();
})();
