"use strict";
// The grid of clients.

(() => {
  const { $, h, setText, known, number, count, score, gain, plural, color, inkOn, ramp, shade, rampKey } = Base;
  const { panel, tableOf, measureName, LISTED } = Panels;

  // --- clients --------------------------------------------------------------------------------------------

  const STATES = ["idle", "working", "took part in the last round", "reply refused", "dropped, too slow", "absent", "newcomer"];
  const STATE_COLORS = ["--tile", "--running", "--s-clients", "--bad", "--warn", "--panel", "--panel"];
  const SIGNS = { [ABSENT]: "struck", [NEWCOMER]: "ringed" }; // where the colour alone does not say it
  const MOST_TILES = 20000;

  panel("clients", (run) => run.clients > 0, (section, open) => {
    const by = $(".by", section);
    const order = $(".order", section);
    const find = $(".find input", section);
    const key = $(".key", section);
    let run = null;
    let tiles = []; // clients, in the order of their tiles
    let values = null;
    let ends = [0, 1];
    let grid = { columns: 1, size: 1, left: 0 };
    let at = -1; // the tile the keyboard is on

    const COLORS = {
      personal: { label: () => `${measureName(run)}, personal model`, of: (k) => run.valueOf(k, "personal"), has: () => run.eachLast && run.eachLast.personal, text: (v) => score(run.measure, v) },
      clients: { label: () => (run.measure === "accuracy" ? "accuracy" : "loss"), of: (k) => run.valueOf(k, "clients"), has: () => run.eachLast && run.eachLast.clients, text: (v) => score(run.measure, v) },
      gain: { label: () => "gain of the personal model", of: (k) => run.gainOf(k), has: () => run.eachLast && run.eachLast.personal && run.eachLast.clients, text: (v) => gain(run.measure, v), both: true },
      state: { label: () => "state", of: (k) => run.state[k], has: () => true, text: (v) => STATES[v] },
      count: { label: () => "participations", of: (k) => run.count[k], has: () => true, text: count },
      size: { label: () => "training samples", of: (k) => { const s = run.sizeOf(k); return s === null ? NaN : s; }, has: () => run.partition && run.partition.sizes, text: count },
      loss: { label: () => "training loss", of: (k) => run.lastLoss[k], has: () => run.lastLoss.some(known), text: (v) => number(v, 3) },
      norm: { label: () => "norm of the update", of: (k) => run.lastNorm[k], has: () => run.lastNorm.some(known), text: (v) => number(v, 3) },
      cosine: { label: () => "cosine to the mean", of: (k) => run.lastCosine[k], has: () => run.lastCosine.some(known), text: (v) => number(v, 3) },
    };
    let chosen = null;
    const stateOf = (k) => `${STATES[run.state[k]]}${run.attackers.has(k) ? ", attacker" : ""}`;
    const seen = () => run.lastNorm.some(known); // not where updates are hidden from the server

    const surface = new Surface($(".tiles", section), {
      draw,
      hover: (x, y) => { const k = clientAt(x, y); return k === null ? null : lines(k); },
      press: (x, y) => { const k = clientAt(x, y); if (k !== null) open(k, tiles); },
    });
    const canvas = surface.canvas;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "grid of clients");
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Samples", "Took part", "Last round", measureName(run), ...(run.personalised ? ["personal model"] : []), ...(seen() ? ["Norm", "Cosine"] : []), "State"],
      rows: tiles.slice(0, LISTED + 1).map((k) => [run.nameOf(k), count(run.sizeOf(k)), count(run.count[k]), run.lastRound[k] ? String(run.lastRound[k]) : "–",
        score(run.measure, run.valueOf(k, "clients")), ...(run.personalised ? [score(run.measure, run.valueOf(k, "personal"))] : []),
        ...(seen() ? [number(run.lastNorm[k], 3), number(run.lastCosine[k], 3)] : []), stateOf(k)]),
    }));

    function population() {
      if (run.clients <= MOST_TILES) return Array.from({ length: run.clients }, (_, k) => k);
      const found = new Set(run.judged.slice(0, MOST_TILES));
      for (let k = 0; k < run.clients && found.size < MOST_TILES; k++) if (run.count[k]) found.add(k);
      return [...found].sort((a, b) => a - b);
    }

    function update(now) {
      if (now !== run) { chosen = null; at = -1; }
      run = now;
      const options = Object.entries(COLORS).filter(([, c]) => c.has());
      const shape = options.map(([name, c]) => name + c.label()).join();
      if (by.dataset.shape !== shape) {
        by.dataset.shape = shape;
        by.replaceChildren(...options.map(([name, c]) => h("option", { value: name }, c.label())));
      }
      const names = options.map(([name]) => name);
      by.value = names.includes(chosen) ? chosen : names[0];
      arrange();
      surface.redraw();
      fillTable(run);
    }

    function arrange() {
      const value = COLORS[by.value].of;
      tiles = population();
      values = new Float64Array(run.clients).fill(NaN);
      let [low, high] = [Infinity, -Infinity];
      for (const k of tiles) {
        const v = value(k);
        values[k] = known(v) ? v : NaN;
        if (values[k] < low) low = values[k];
        if (values[k] > high) high = values[k];
      }
      if (order.value === "value") {
        const rank = (k) => (known(values[k]) ? values[k] : -Infinity);
        tiles.sort((a, b) => rank(b) - rank(a) || a - b);
      }
      if (!(high >= low)) [low, high] = [0, 1];
      if (COLORS[by.value].both) { high = Math.max(Math.abs(low), Math.abs(high)) || 1; low = -high; }
      else if (by.value === "count" || by.value === "norm" || by.value === "size") low = 0;
      else if (run.measure === "accuracy" && by.value !== "cosine" && by.value !== "loss") [low, high] = [Math.floor(low * 20) / 20, Math.ceil(high * 20) / 20];
      ends = [low, high];
      legend();
      const states = STATES.map(() => 0);
      for (const k of tiles) states[run.state[k]] += 1;
      surface.describe(`${count(tiles.length)} clients by ${COLORS[by.value].label()}. ` +
        [...STATES.map((s, i) => `${states[i]} ${s}`).filter((_, i) => states[i]), ...(run.attackers.size ? [plural(run.attackers.size, "attacker")] : [])].join(", ") + ". Arrow keys move, Enter opens a client.");
    }

    function legend() {
      if (by.value === "state") {
        key.replaceChildren(...STATES.map((s, i) => swatch(STATE_COLORS[i], s, SIGNS[i] || "")), ...(run.attackers.size ? [swatch("--tile", "attacker", "crossed")] : []));
        return;
      }
      const { both, text, label } = COLORS[by.value];
      rampKey(key, both ? "both" : "up", text(ends[0]), text(ends[1]), label());
      if (tiles.some((k) => !known(values[k]))) key.append(swatch("--tile", "nothing known"));
      if (grid.size < 9) return;
      if (run.attackers.size) key.append(swatch("--tile", "attacker", "crossed"));
      const there = new Set(tiles.map((k) => run.state[k]));
      const marks = [[WORKING, "--text", "working", "ring"], [REFUSED, "--bad", "refused", "cut"], [DROPPED, "--warn", "dropped, too slow", "cut"], [ABSENT, "--tile", "absent", "struck"], [NEWCOMER, "--tile", "newcomer", "ringed"]];
      key.append(...marks.filter(([state]) => there.has(state)).map(([, ...rest]) => swatch(...rest)));
    }

    function swatch(paint, text, kind = "") {
      const box = h("i", { class: `dot ${kind}` });
      box.style.setProperty("--paint", color(paint));
      return h("span", { class: "keyed" }, box, text);
    }

    function draw(ctx, width, height) {
      if (!run || !tiles.length) return;
      const n = tiles.length;
      let size = Math.min(76, Math.floor(Math.sqrt((width * height) / n)));
      while (size > 2 && Math.floor(width / size) * Math.floor(height / size) < n) size -= 1;
      size = Math.max(2, size);
      const columns = Math.max(1, Math.min(n, Math.floor(width / size)));
      const was = grid.size;
      grid = { columns, size, left: n <= columns ? 0 : (width - columns * size) / 2 };
      if ((was >= 9) !== (size >= 9)) legend();
      const gap = size >= 16 ? 3 : size >= 8 ? 2 : size >= 4 ? 1 : 0;
      const { css } = ramp(COLORS[by.value].both ? "both" : "up");
      const states = STATE_COLORS.map(color);
      const isState = by.value === "state";
      const blank = color("--tile");
      const radius = size >= 16 ? 3 : size >= 10 ? 2 : 0;
      for (let i = 0; i < n; i++) {
        const k = tiles[i];
        const x = grid.left + (i % columns) * size;
        const y = Math.floor(i / columns) * size;
        const fill = isState ? states[run.state[k]] : known(values[k]) ? css[shade(values[k], ends[0], ends[1])] : blank;
        ctx.fillStyle = fill;
        if (radius) { ctx.beginPath(); ctx.roundRect(x, y, size - gap, size - gap, radius); ctx.fill(); } else ctx.fillRect(x, y, size - gap, size - gap);
        if (size >= 44) label(ctx, x, y, size - gap, k, fill);
        if (size >= 9 && (!isState || SIGNS[run.state[k]]) && run.state[k] !== IDLE && run.state[k] !== DONE) mark(ctx, x, y, size - gap, run.state[k], states);
        if (run.attackers.has(k)) cross(ctx, x, y, size - gap);
      }
      if (at >= 0 && at < n && document.activeElement === canvas) {
        ctx.strokeStyle = color("--focus");
        ctx.lineWidth = 2;
        ctx.strokeRect(grid.left + (at % columns) * size - 1, Math.floor(at / columns) * size - 1, size - gap + 2, size - gap + 2);
      }
    }

    /** The number of a client on its tile, where there is room. */
    function label(ctx, x, y, size, k, fill) {
      ctx.fillStyle = inkOn(fill);
      ctx.fillText(String(k), x + 6, y + size - 7, size - 10);
    }

    function mark(ctx, x, y, size, state, states) {
      if (state === WORKING) {
        ctx.strokeStyle = color("--text");
        ctx.lineWidth = 2;
        ctx.strokeRect(x + 1, y + 1, size - 2, size - 2);
        return;
      }
      if (state === ABSENT) {
        ctx.strokeStyle = color("--muted");
        ctx.lineWidth = 1;
        ctx.beginPath();
        ctx.moveTo(x + size - 2, y + 2);
        ctx.lineTo(x + size / 2, y + size / 2); // down to the number
        ctx.stroke();
        return;
      }
      if (state === NEWCOMER) {
        const r = Math.max(2, size * 0.12);
        ctx.strokeStyle = color("--muted");
        ctx.lineWidth = 1.5;
        ctx.beginPath();
        ctx.arc(x + size - r - 4, y + r + 4, r, 0, 2 * Math.PI);
        ctx.stroke();
        return;
      }
      const part = Math.max(5, size * 0.42);
      ctx.fillStyle = states[state];
      ctx.beginPath();
      ctx.moveTo(x + size - part, y);
      ctx.lineTo(x + size, y);
      ctx.lineTo(x + size, y + part);
      ctx.fill();
    }

    /** An attacker, whatever its state. */
    function cross(ctx, x, y, size) {
      const part = Math.max(2, size * 0.26);
      const [right, low] = [x + size - Math.min(3, size / 8), y + size - Math.min(3, size / 8)];
      ctx.strokeStyle = color("--bad");
      ctx.lineWidth = size >= 16 ? 2 : 1;
      ctx.beginPath();
      ctx.moveTo(right - part, low - part);
      ctx.lineTo(right, low);
      ctx.moveTo(right, low - part);
      ctx.lineTo(right - part, low);
      ctx.stroke();
    }

    function clientAt(x, y) {
      const column = Math.floor((x - grid.left) / grid.size);
      if (column < 0 || column >= grid.columns || y < 0) return null;
      const client = tiles[Math.floor(y / grid.size) * grid.columns + column];
      return client === undefined ? null : client;
    }

    function lines(k) {
      const c = COLORS[by.value];
      const found = [run.nameOf(k)];
      if (by.value !== "state") found.push(`${c.label()} ${c.text(values[k])}`);
      found.push(`${stateOf(k)} · took part in ${plural(run.count[k], "round")}`);
      return found;
    }

    function move(to) {
      at = Math.max(0, Math.min(tiles.length - 1, to));
      surface.redraw();
      setText($(".announce", section), lines(tiles[at]).join(", "));
    }

    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns, Home: -1e9, End: 1e9 }[event.key];
      if (step) { event.preventDefault(); move(at < 0 ? 0 : at + step); }
      if (event.key === "Enter" && at >= 0) { event.preventDefault(); open(tiles[at], tiles); } // or it would press the dialog's button
    });
    canvas.addEventListener("focus", () => { if (run && canvas.matches(":focus-visible")) move(Math.max(0, at)); });
    canvas.addEventListener("blur", () => surface.redraw());
    for (const select of [by, order]) {
      select.addEventListener("change", () => { chosen = by.value; if (run) { arrange(); surface.redraw(); fillTable(run); } });
    }
    find.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !run) return;
      event.preventDefault();
      const text = find.value.trim().toLowerCase();
      let found = /^\d+$/.test(text) && Number(text) < run.clients ? Number(text) : -1;
      for (let k = 0; found < 0 && text && k < run.clients; k++) if (run.nameOf(k).toLowerCase().includes(text)) found = k;
      if (found >= 0) open(found, tiles);
      else setText($(".announce", section), `There is no client ${find.value}`);
      find.classList.toggle("missed", found < 0);
    });
    find.addEventListener("input", () => find.classList.remove("missed"));
    return update;
  });
})();
