// Recorded poses of robots, replayed on a canvas. `place` computes where the parts of a body are from joint angles, as MuJoCo does.
'use strict';
const WANTED = '#111';                                                 // colour of what a task wants

const turn = (q, v) => {                                                // rotate a vector by a unit quaternion
  const [w, x, y, z] = q, t = [2*(y*v[2] - z*v[1]), 2*(z*v[0] - x*v[2]), 2*(x*v[1] - y*v[0])];
  return [v[0] + w*t[0] + y*t[2] - z*t[1], v[1] + w*t[1] + z*t[0] - x*t[2], v[2] + w*t[2] + x*t[1] - y*t[0]];
};
const times = ([a, b, c, d], [e, f, g, h]) => [a*e - b*f - c*g - d*h, a*f + b*e + c*h - d*g, a*g - b*h + c*e + d*f, a*h + b*g - c*f + d*e];
const plus = (a, b, k = 1) => a.map((v, i) => v + k*b[i]);
const unit = q => { const n = Math.hypot(...q); return q.map(v => v/n); };

function place(body, pose) {                                            // ends of every part of a body: [from, to, radius], m
  const at = [[[0, 0, 0], [1, 0, 0, 0]]], shapes = [];
  for (const link of body) {
    let [pos, quat] = at[link.parent];
    pos = plus(pos, turn(quat, link.pos)); quat = times(quat, link.quat);
    for (const {type, axis, pos: anchor, from, zero} of link.joints) {
      if (type === 'free') { pos = pose.slice(from, from + 3); quat = unit(pose.slice(from + 3, from + 7)); continue; }
      const value = pose[from] - zero;
      if (type === 'slide') { pos = plus(pos, turn(quat, axis), value); continue; }
      const pivot = plus(pos, turn(quat, anchor)), s = Math.sin(value/2);
      quat = times(quat, [Math.cos(value/2), ...axis.map(v => v*s)]);
      pos = plus(pivot, turn(quat, anchor), -1);
    }
    at.push([pos, quat]);
    for (const [a, b, radius] of link.shapes) shapes.push([plus(pos, turn(quat, a)), plus(pos, turn(quat, b)), radius]);
  }
  return shapes;
}

function poses(play, width, units) {                                           // {data: base64 of int16} -> a list of poses
  const bytes = Uint8Array.from(atob(play.data), c => c.charCodeAt(0)), view = new DataView(bytes.buffer);
  return Array.from({length: bytes.length/2/width}, (_, t) => Array.from({length: width}, (_, i) => view.getInt16(2*(t*width + i), true)/units));
}

function stage(ROBOTS, make, selector) {                                // the panel of the page: worlds, agents, tasks, canvases
  const WIDTH = 640, HEIGHT = 300, worlds = [...new Set(ROBOTS.plays.map(p => p.world))], now = {world: worlds[0], task: 0, t: 0, timer: 0};
  const cache = new Map(), path = p => { if (!cache.has(p)) cache.set(p, poses(p, ROBOTS.bodies[p.body].width, ROBOTS.units)); return cache.get(p); };
  const of = world => ROBOTS.plays.filter(p => p.world === world), agents = world => [...new Set(of(world).map(p => p.agent))];
  const chosen = agent => of(now.world).find(p => p.agent === agent && p.task === now.task);
  const tasks = () => [...new Map(of(now.world).map(p => [p.task, `${p.wanted} (${p.split})`]))];
  const box = make('div', {class: 'row wide'}), moment = make('output', {}), slider = make('input', {type: 'range', min: 0, value: 0, 'aria-label': 'time', oninput: e => { stop(); show(+e.target.value); }});
  const button = make('button', {onclick: () => now.timer ? stop() : start()}, 'Play robots');
  const choices = make('span', {});
  let views = [];

  function draw(canvas, p, t) {
    const g = canvas.getContext('2d'), list = path(p), body = ROBOTS.bodies[p.body], first = p.starts.filter(s => s <= t).pop(), episode = p.starts.indexOf(first);
    const shapes = place(body.links, list[t]), torso = shapes[0][0], flat = p.kind === 'velocity';
    const metre = flat ? 100 : p.kind === 'goal' ? 55 : 70;
    const middle = p.kind === 'goal' ? [0, 0] : torso;
    const sin = Math.sin(.75), cos = Math.cos(.75), ground = flat ? HEIGHT - 50 : HEIGHT/2 + 10;
    const px = ([x, y, z]) => [WIDTH/2 + (x - middle[0])*metre, ground - (flat ? z : (y - middle[1])*sin + z*cos)*metre];
    const line = (a, b, colour, width) => { g.strokeStyle = colour; g.lineWidth = width; g.beginPath(); g.moveTo(...px(a)); g.lineTo(...px(b)); g.stroke(); };
    const arrow = (a, b, colour) => {
      line(a, b, colour, 5);
      const [x, y] = px(b), [u, v] = px(a), d = Math.hypot(x - u, y - v) || 1, ex = (x - u)/d*12, ey = (y - v)/d*12;
      g.fillStyle = colour; g.beginPath(); g.moveTo(x + ex, y + ey); g.lineTo(x - ey*.7, y + ex*.7); g.lineTo(x + ey*.7, y - ex*.7); g.fill();
    };
    g.lineCap = 'round'; g.fillStyle = '#fff'; g.fillRect(0, 0, WIDTH, HEIGHT);
    const span = Math.ceil(WIDTH/2/metre) + 1, x0 = Math.round(middle[0]), y0 = Math.round(middle[1]);
    if (flat) {
      line([middle[0] - span, 0, 0], [middle[0] + span, 0, 0], '#777', 2);
      g.fillStyle = '#444'; g.font = '17px sans-serif'; g.textAlign = 'center';
      for (let x = x0 - span; x <= x0 + span; x++) { line([x, 0, 0], [x, 0, -.08], '#777', 2); const [u, v] = px([x, 0, -.3]); g.fillText(`${x} m`, u, v); }
    } else for (let k = -span; k <= span; k++) {
      line([x0 + k, y0 - span, 0], [x0 + k, y0 + span, 0], '#ddd', 1); line([x0 - span, y0 + k, 0], [x0 + span, y0 + k, 0], '#ddd', 1);
    }
    if (p.kind === 'goal') { const [x, y] = px([...p.value, 0]); g.fillStyle = WANTED; g.beginPath(); g.ellipse(x, y, 12, 12*sin, 0, 0, 7); g.fill(); }
    if (p.kind === 'direction') arrow([torso[0], torso[1], 0], [torso[0] + 1.7*Math.cos(p.value[0]), torso[1] + 1.7*Math.sin(p.value[0]), 0], WANTED);
    if (!flat) {
      g.strokeStyle = p.colour; g.lineWidth = 3; g.beginPath();
      for (let k = first; k <= t; k++) g.lineTo(...px([list[k][0], list[k][1], 0]));
      g.stroke();
    }
    const order = flat ? shapes : [...shapes].sort((a, b) => (b[0][1] + b[1][1]) - (a[0][1] + a[1][1]));
    for (const s of order) line(s[0], s[1], '#333', 2*s[2]*metre + 2);
    for (const s of order) line(s[0], s[1], p.colour, 2*s[2]*metre);
    let text = `episode ${episode + 1}`;
    if (flat) {
      const back = Math.max(first, t - 5), v = t > back ? (list[t][0] - list[back][0])*ROBOTS.rate/(t - back) : 0;
      const left = middle[0] - 2.9;
      arrow([left, 0, 1.75], [left + .6*p.value[0], 0, 1.75], WANTED); arrow([left, 0, 1.5], [left + .6*v, 0, 1.5], p.colour);
      g.fillStyle = '#222'; g.textAlign = 'left'; g.font = '19px sans-serif';
      [[1.7, `wanted: ${p.value[0]} m/s`], [1.45, `now: ${v.toFixed(2)} m/s`]].forEach(([z, words]) => g.fillText(words, ...px([left + 2.3, 0, z])));
    }
    g.fillStyle = '#222'; g.textAlign = 'left'; g.font = '19px sans-serif'; g.fillText(text, 10, 22);
  }
  function show(t) {
    now.t = Math.min(t, +slider.max); slider.value = now.t;
    for (const v of views) {
      const p = chosen(v.agent), last = path(p).length - 1;
      draw(v.canvas, p, Math.min(now.t, last));
      v.text.textContent = `returns of the ${p.returns.length} episodes: ${p.returns.map(r => r.toFixed(0)).join(', ')} (standing still: ${p.standing.toFixed(0)})`;
    }
    moment.textContent = ` ${(now.t/ROBOTS.rate).toFixed(1)} s`;
  }
  function stop() { clearInterval(now.timer); now.timer = 0; button.textContent = 'Play robots'; }
  function start() {
    if (now.t >= +slider.max) show(0);
    button.textContent = 'Pause';
    now.timer = setInterval(() => now.t < +slider.max ? show(now.t + 1) : stop(), 1000/ROBOTS.rate);
  }
  function set(world, task) {
    stop();
    now.world = world; now.task = task;
    views = agents(world).map(agent => {
      const canvas = make('canvas', {width: WIDTH, height: HEIGHT, role: 'img', 'aria-label': `${agent} on ${world}`}), text = make('p', {});
      return {agent, canvas, text, box: make('div', {class: 'robot'}, make('b', {}, agent), make('small', {}, ` seed ${of(world).find(p => p.agent === agent).seed}`), canvas, text)};
    });
    box.replaceChildren(...views.map(v => v.box));
    const names = tasks(), named = new Map(names.map(([k, n]) => [n, k]));
    choices.replaceChildren(selector('world', 'World:', worlds, world, w => set(w, 0)), ' ', selector('task', 'Task:', names.map(([, n]) => n), new Map(names).get(task), n => set(now.world, named.get(n))));
    slider.max = Math.max(...views.map(v => path(chosen(v.agent)).length)) - 1;
    show(0);
  }
  set(worlds[0], 0);
  return [make('p', {class: 'controls'}, choices), make('p', {class: 'controls'}, button, ' ', slider, moment), box];
}
if (typeof module !== 'undefined') module.exports = {place, poses};
