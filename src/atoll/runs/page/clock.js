"use strict";
// A run on the virtual clock: what clients' devices did when, whose time was of use, how old replies were.

(() => {
  const { $, setText, count, percent, joules, duration, plural, color } = Base;
  const { panel, stacked, legend, tableOf, LISTED } = Panels;

  // --- orders -----------------------------------------------------------------------------------------------

  const PARTS = [["download", "download", "--s-personal"], ["compute", "compute", "--s-clients"], ["upload", "upload", "--s-global"]];
  const FATES = [["late", "late", "--warn", "late"], ["failed", "broken off", "--bad", "broken"]];

  panel("devices", (run) => run.clocked && run.rounds.some((r) => r.columns && r.columns.began), (section, open) => {
    let run = null;
    let shown = []; // rounds
    let orders = [];
    let everyone = []; // clients, the longest at work first
    let rows = []; // those that are drawn
    let [from, to] = [0, 1];
    let picked = false;
    const many = $("select", section);
    const surface = new Surface($(".mid", section), { draw, hover, press: (x, y) => { const found = find(x, y); if (found) open(found.client, rows); } });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Round", "Asked at", "Download", "Compute", "Upload", "Done at", "Staleness", "Reply"],
      rows: orders.slice(-LISTED - 1).reverse().map((o) => [run.nameOf(o.client), String(o.round), duration(o.began), ...o.parts.map(duration), duration(o.done), count(o.staleness), fate(o)]),
    }));

    const fate = (o) => (o.failed ? "broken off" : o.late ? (o.used || o.kept ? "late" : "late, not used") : o.used ? "used" : "not used");

    function update(now) {
      run = now;
      if (!picked && ((run.start.config || {}).pace || "sync") !== "sync") many.value = "12"; // its rounds are short beside orders
      const timed = run.rounds.filter((r) => r.columns && r.columns.began);
      shown = timed.slice(-Number(many.value));
      const last = new Map(); // of a late reply that is kept, what its last round says
      for (const order of shown.flatMap((r) => run.ordersOf(r))) {
        const key = `${order.client} ${order.began}`;
        const before = last.get(key);
        last.set(key, before ? { ...order, late: order.late || before.late } : order);
      }
      orders = [...last.values()];
      const work = new Map();
      for (const o of orders) work.set(o.client, Math.max(work.get(o.client) || 0, o.done - o.began));
      everyone = [...work.keys()].sort((a, b) => work.get(b) - work.get(a) || a - b);
      const [first, end] = [shown[0].clock.began, shown[shown.length - 1].clock.ended];
      from = Math.max(2 * first - end, Math.min(first, ...orders.map((o) => o.began))); // no more before the rounds than they have
      to = Math.max(end, from + 1e-9);
      legend($(".key", section), [...PARTS, ...FATES]);
      surface.redraw();
      note();
      fillTable(run);
    }

    function note() {
      const late = orders.filter((o) => o.late).length;
      const failed = orders.filter((o) => o.failed).length;
      const what = [late ? `${count(late)} late` : "", failed ? `${count(failed)} broken off` : ""].filter(Boolean).join(", ");
      const name = shown.length > 1 ? `Rounds ${shown[0].round} to ${shown[shown.length - 1].round}` : `Round ${shown[0].round}`;
      setText($(".note", section), `${name} took ${duration(to - shown[0].clock.began)} of virtual time: ${plural(orders.length, "order")} of ${plural(everyone.length, "client")}${what ? `, ${what}` : ""}.` +
        (rows.length < everyone.length ? ` The ${count(rows.length)} that are longest at work are drawn.` : ""));
      surface.describe(`What clients’ devices did when. ${$(".note", section).textContent}`);
    }

    function layout(width, height) {
      rows = everyone.slice(0, Math.max(4, Math.floor((height - 48) / 6)));
      const tall = Math.min(20, (height - 48) / Math.max(1, rows.length));
      const named = tall >= 12 && width > 420;
      const left = named ? Math.min(130, 14 + Math.max(...rows.map((k) => run.nameOf(k).length)) * 6.8) : 6;
      return { left, top: 20, width: width - left - 12, height: tall * rows.length, tall, named };
    }

    const at = (b, time) => b.left + ((Math.max(from, time) - from) / (to - from)) * b.width;

    function draw(ctx, width, height) {
      if (!orders.length) { Draw.nothing(ctx, width, height, "No order is over yet"); return; }
      const b = layout(width, height);
      Draw.axes(ctx, b, { x: [from, to], xText: duration, xTicks: Base.ticks(from, to, Math.max(2, Math.min(7, b.width / 110))) });
      const wide = (b.width / (to - from)) * ((to - shown[0].clock.began) / shown.length);
      ctx.strokeStyle = color("--line");
      ctx.fillStyle = color("--muted");
      ctx.textBaseline = "top";
      let free = 0; // where the next round's name has room
      for (const { round, clock } of shown) {
        if (wide > 5) for (const time of [clock.began, clock.ended]) Draw.line(ctx, at(b, time), b.top - 4, at(b, time), b.top + b.height);
        const x = at(b, clock.began);
        if (x < free || x + 56 > b.left + b.width) continue;
        ctx.fillText(`round ${round}`, x + 3, 0);
        free = x + 64;
      }
      if (b.named) {
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        rows.forEach((k, i) => ctx.fillText(Draw.clip(ctx, run.nameOf(k), b.left - 12), b.left - 8, b.top + (i + 0.5) * b.tall));
      }
      const place = new Map(rows.map((k, i) => [k, i]));
      const gap = b.tall > 8 ? 4 : b.tall > 4 ? 1 : 0.5;
      for (const order of orders) if (place.has(order.client)) bar(ctx, b, order, b.top + place.get(order.client) * b.tall + gap / 2, b.tall - gap);
    }

    /** An order: its parts one after the other, as far as it came; what is not used is pale. */
    function bar(ctx, b, order, y, tall) {
      const x1 = at(b, order.done);
      ctx.globalAlpha = order.used || order.kept ? 1 : 0.38;
      let time = order.began;
      order.parts.forEach((seconds, i) => {
        const [left, right] = [at(b, Math.min(time, order.done)), at(b, Math.min(time + seconds, order.done))];
        ctx.fillStyle = color(PARTS[i][2]);
        if (right > left) ctx.fillRect(left, y, Math.max(0.7, right - left), tall);
        time += seconds;
      });
      ctx.fillStyle = color("--muted");
      if (time < order.done) ctx.fillRect(at(b, time), y + tall / 2 - 0.5, Math.max(1, x1 - at(b, time)), 1); // the line's own time
      ctx.globalAlpha = 1;
      if (order.late) {
        ctx.fillStyle = color("--warn");
        ctx.fillRect(x1 - 1, y - 1, 2.5, tall + 2);
      }
      if (order.failed) {
        const r = Math.max(2, Math.min(4, tall / 2));
        const middle = y + tall / 2;
        ctx.strokeStyle = color("--bad");
        ctx.lineWidth = 1.75;
        ctx.beginPath();
        for (const s of [-1, 1]) { ctx.moveTo(x1 - r, middle - s * r); ctx.lineTo(x1 + r, middle + s * r); }
        ctx.stroke();
        ctx.lineWidth = 1;
      }
    }

    function find(x, y) {
      if (!orders.length) return null;
      const b = layout(surface.host.clientWidth, surface.host.clientHeight);
      const client = rows[Math.floor((y - b.top) / b.tall)];
      if (client === undefined || x < b.left - 4) return null;
      const near = 3 * ((to - from) / b.width);
      const time = from + ((x - b.left) / b.width) * (to - from);
      return { client, order: orders.find((o) => o.client === client && time >= o.began - near && time <= o.done + near) };
    }

    function hover(x, y) {
      const found = find(x, y);
      if (!found) return null;
      const { client, order } = found;
      if (!order) return [run.nameOf(client), "not at work"];
      const [down, work, up] = order.parts.map(duration);
      return [run.nameOf(client), `round ${order.round}: asked at ${duration(order.began)}, ${order.failed ? "broken off" : order.used ? "done" : "over"} at ${duration(order.done)}`,
        `download ${down}, compute ${work}, upload ${up}`, `${fate(order)}${order.staleness ? `, staleness ${order.staleness}` : ""}`];
    }

    many.addEventListener("change", () => { picked = true; if (run) update(run); });
    return update;
  });

  // --- clients' time ----------------------------------------------------------------------------------------

  panel("utilisation", (run) => run.clocked, (section) => {
    const KINDS = [["used", "used", "--s-clients"], ["wasted", "wasted", "--warn"]];
    const drawn = stacked(section, KINDS, { text: duration, whole: false, left: 58 });
    const fillTable = tableOf(section, (run) => ({
      head: ["Round", "Virtual time", "Client time", "Wasted", "Energy", "Late", "Broken off", "Came", "Left", "Staleness"],
      rows: run.rounds.slice().reverse().map(({ round, clock }) => [String(round), duration(clock.ended), duration(clock.spent), duration(clock.wasted), joules(clock.energy),
        ...["late", "failed", "came", "left"].map((name) => count(clock[name].size)), clock.staleness.toFixed(2)]),
    }));

    /** How many clients can be at work at a time, as the run is set. */
    function places(run) {
      const { pace = "sync", concurrency, cohort = run.start.cohort, over_select = 1 } = run.start.config || {};
      return pace === "sync" ? Math.ceil((run.start.cohort || cohort) * over_select - 1e-9) : concurrency || run.start.cohort;
    }

    return (run) => {
      const sum = (value) => run.rounds.reduce((total, r) => total + value(r.clock), 0);
      const [spent, wasted] = [sum((c) => c.spent), sum((c) => c.wasted)];
      const [late, failed] = [sum((c) => c.late.size), sum((c) => c.failed.size)];
      const [came, left] = [sum((c) => c.came.size), sum((c) => c.left.size)];
      const whole = sum((c) => c.ended - c.began) * places(run);
      Base.figures($("dl", section), [
        ["Client time", duration(spent), "of all clients together"],
        ["Used", spent ? percent(1 - wasted / spent) : "–", wasted ? `${duration(wasted)} wasted` : "nothing wasted"],
        ["At work", whole ? percent(Math.min(1, spent / whole)) : "–", `of the time of ${plural(places(run), "place")}; the rest waits`],
        ["Energy", joules(sum((c) => c.energy))],
        ["Late", count(late)],
        ["Broken off", count(failed)],
        ...(came + left ? [["Came and left", `${count(came)}, ${count(left)}`, `${plural(run.away.size, "client")} away after the last round`]] : []),
      ]);
      drawn(run.rounds.map(({ round, clock }) => ({ round, used: Math.max(0, clock.spent - clock.wasted), wasted: clock.wasted })),
        `Clients’ time: ${duration(spent)}, of which ${duration(wasted)} were wasted; ${plural(late, "reply", "replies")} late, ${count(failed)} broken off.`);
      fillTable(run);
    };
  });

  // --- staleness --------------------------------------------------------------------------------------------

  panel("staleness", (run) => run.clocked && run.rounds.some((r) => r.clock.staleness > 0), (section) => {
    const BINS = 40;
    let bins = []; // {first, last, replies}
    let whole = 1;
    const surface = new Surface($(".mid", section), { draw, hover });
    const fillTable = tableOf(section, () => ({ head: ["Staleness", "Replies", "Share"], rows: bins.map((bin) => [words(bin), count(bin.replies), percent(bin.replies / whole)]) }));
    const words = ({ first, last }) => (first === last ? String(first) : `${first} to ${last}`);

    function update(run) {
      const tally = new Map();
      for (const { clock } of run.rounds) {
        const known = clock.stale && clock.stale.length ? clock.stale : [[0, clock.used]];
        for (const [value, replies] of known) tally.set(value, (tally.get(value) || 0) + replies);
      }
      const most = Math.max(...tally.keys());
      const wide = Math.ceil((most + 1) / BINS);
      bins = Array.from({ length: Math.floor(most / wide) + 1 }, (_, i) => ({ first: i * wide, last: (i + 1) * wide - 1, replies: 0 }));
      let [replies, sum] = [0, 0];
      for (const [value, n] of tally) { bins[Math.floor(value / wide)].replies += n; replies += n; sum += n * value; }
      whole = replies || 1;
      setText($(".note", section), `${plural(replies, "reply", "replies")}: ${percent((tally.get(0) || 0) / whole)} of the model as it is, ${(sum / whole).toFixed(2)} steps old on average, ${count(most)} at most.`);
      surface.describe(`How old replies were. ${$(".note", section).textContent}`);
      surface.redraw();
      fillTable(run);
    }

    const box = (width, height) => ({ left: 40, top: 8, width: width - 48, height: height - 46 });

    function draw(ctx, width, height) {
      if (!bins.length) return;
      const b = box(width, height);
      const top = Math.max(1, ...bins.map((bin) => bin.replies)) * 1.04;
      Draw.axes(ctx, b, { y: [0, top], yTicks: Base.ticks(0, top, Math.max(2, b.height / 44), true) });
      const wide = b.width / bins.length;
      ctx.fillStyle = color("--s-clients");
      bins.forEach(({ replies }, i) => {
        const tall = (replies / top) * b.height;
        ctx.fillRect(b.left + i * wide + (wide > 4 ? 1 : 0), b.top + b.height - tall, Math.max(1, wide - (wide > 4 ? 2 : 0)), tall);
      });
      ctx.fillStyle = color("--muted");
      ctx.textAlign = "center";
      ctx.textBaseline = "top";
      const each = Math.ceil(28 / wide);
      bins.forEach(({ first }, i) => { if (i % each === 0) ctx.fillText(String(first), b.left + (i + 0.5) * wide, b.top + b.height + 6); });
      ctx.fillText("steps since the client was sent the model", b.left + b.width / 2, b.top + b.height + 24, b.width);
    }

    function hover(x) {
      const b = box(surface.host.clientWidth, surface.host.clientHeight);
      const bin = bins[Math.floor(((x - b.left) / b.width) * bins.length)];
      return bin ? [`staleness ${words(bin)}`, `${plural(bin.replies, "reply", "replies")}, ${percent(bin.replies / whole)}`] : null;
    }
    return update;
  });
})();
