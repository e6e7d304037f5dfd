"use strict";
// What a run costs: waiting for the slowest, and bytes.

(() => {
  const { $, setText, known, count, percent, bytes, duration, plural, quantiles, color } = Base;
  const { panel, tableOf, LISTED } = Panels;

  // --- stragglers -----------------------------------------------------------------------------------------

  const timed = (r) => Boolean(r.columns && r.columns.end);

  panel("timing", (run) => run.rounds.some(timed), (section, open) => {
    let run = null;
    let shown = []; // {round, offset, seconds}
    let span = 1;
    let rows = []; // clients, the slowest first
    let everyone = [];
    const many = $("select", section);
    const surface = new Surface($(".mid", section), { draw, hover, press: (x, y) => { const found = find(x, y); if (found) open(found.client, rows); } });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Round", "Start", "End", "Worked"],
      rows: shown.flatMap(({ round }) => round.cohort.toArray().map((k, i) => [k, i, round]))
        .sort((a, b) => b[2].columns.end[b[1]] - a[2].columns.end[a[1]]).slice(0, LISTED + 1)
        .map(([k, i, r]) => { const { start, end } = r.columns; return [run.nameOf(k), String(r.round), duration(start ? start[i] : 0), duration(end[i]), duration(end[i] - (start ? start[i] : 0))]; }),
    }));

    function update(now) {
      run = now;
      let offset = 0;
      shown = run.rounds.filter(timed).slice(-Number(many.value)).map((round) => {
        const seconds = Math.max(round.seconds || 0, ...round.columns.end.filter(known));
        const found = { round, offset, seconds };
        offset += seconds;
        return found;
      });
      span = offset || 1;
      const worst = new Map();
      for (const { round } of shown) round.cohort.each((k, i) => { const e = round.columns.end[i]; if (known(e)) worst.set(k, Math.max(worst.get(k) || 0, e)); });
      everyone = [...worst.keys()].sort((a, b) => worst.get(b) - worst.get(a));
      surface.redraw();
      remark();
      fillTable(run);
    }

    function remark() {
      const { round } = shown[shown.length - 1];
      const ends = round.columns.end;
      const who = round.cohort.toArray();
      let slow = -1;
      let [sum, n] = [0, 0];
      ends.forEach((e, i) => { if (known(e)) { sum += e; n += 1; if (slow < 0 || e > ends[slow]) slow = i; } });
      if (slow < 0) return;
      const waited = 1 - sum / n / ends[slow];
      setText($(".note", section), `Round ${round.round}: the median client was done after ${duration(quantiles(ends, [0.5])[0])}, the slowest (${run.briefOf(who[slow])}) after ${duration(ends[slow])}; ` +
        `clients waited ${percent(Math.max(0, waited), 0)} of the time.` + (rows.length < everyone.length ? ` The slowest ${rows.length} of ${plural(everyone.length, "client")} are drawn.` : ""));
      surface.describe(`When each client worked. ${$(".note", section).textContent}`);
    }

    function layout(width, height) {
      const most = Math.max(4, Math.floor((height - 30) / 6));
      rows = everyone.slice(0, most);
      const tall = Math.min(18, (height - 30) / Math.max(1, rows.length));
      const named = tall >= 12 && width > 420;
      const left = named ? Math.min(130, 14 + Math.max(...rows.map((k) => run.nameOf(k).length)) * 6.8) : 6;
      return { left, top: 4, width: width - left - 10, height: tall * rows.length, tall, named };
    }

    function draw(ctx, width, height) {
      if (!shown.length) return;
      const b = layout(width, height);
      ctx.fillStyle = color("--muted");
      ctx.textBaseline = "top";
      for (const { round, offset, seconds } of shown) {
        const x = b.left + (offset / span) * b.width;
        const wide = (seconds / span) * b.width;
        ctx.strokeStyle = color("--line");
        Draw.line(ctx, x, b.top, x, b.top + b.height + 4);
        ctx.textAlign = "left";
        if (wide > 58) ctx.fillText(wide > 130 ? `round ${round.round} · ${duration(seconds)}` : `round ${round.round}`, x + 3, b.top + b.height + 8);
      }
      if (b.named) {
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        rows.forEach((k, i) => ctx.fillText(Draw.clip(ctx, run.nameOf(k), b.left - 12), b.left - 8, b.top + (i + 0.5) * b.tall));
      }
      const place = new Map(rows.map((k, i) => [k, i]));
      const gap = b.tall > 8 ? 3 : b.tall > 4 ? 1 : 0.5;
      const [usual, slow] = [color("--s-clients"), color("--s-worst")];
      for (const { round, offset } of shown) {
        const { start, end } = round.columns;
        const last = Math.max(...end.filter(known));
        round.cohort.each((k, i) => {
          if (!place.has(k) || !known(end[i])) return;
          const from = start && known(start[i]) ? start[i] : 0;
          const x = b.left + ((offset + from) / span) * b.width;
          ctx.fillStyle = end[i] === last ? slow : usual;
          ctx.fillRect(x, b.top + place.get(k) * b.tall + gap / 2, Math.max(1.5, ((end[i] - from) / span) * b.width), b.tall - gap);
        });
      }
    }

    function find(x, y) {
      if (!shown.length) return null;
      const b = layout(surface.host.clientWidth, surface.host.clientHeight);
      const client = rows[Math.floor((y - b.top) / b.tall)];
      const at = ((x - b.left) / b.width) * span;
      const found = shown.find((s) => at >= s.offset && at < s.offset + s.seconds);
      return client === undefined || !found ? null : { client, round: found.round };
    }

    function hover(x, y) {
      const found = find(x, y);
      if (!found) return null;
      const i = found.round.cohort.toArray().indexOf(found.client);
      if (i < 0) return [run.nameOf(found.client), `did not take part in round ${found.round.round}`];
      const { start, end, samples } = found.round.columns;
      const from = start && known(start[i]) ? start[i] : 0;
      return [run.nameOf(found.client), `round ${found.round.round}: worked ${duration(end[i] - from)}`, `done after ${duration(end[i])}`, ...(samples ? [plural(samples[i], "sample")] : [])];
    }

    many.addEventListener("change", () => { if (run) update(run); });
    return update;
  });

  // --- traffic --------------------------------------------------------------------------------------------

  panel("traffic", (run) => run.counted, (section) => {
    const each = new Lines($(".each", section), { text: (v) => bytes(v, 3), zero: true, label: "Bytes of each round" });
    const total = new Lines($(".total", section), { text: (v) => bytes(v, 3), zero: true, label: "Bytes in total" });
    const fillTable = tableOf(section, (run) => ({
      head: ["Round", "Down", "Up", "Down in total", "Up in total", "Time"],
      rows: run.rounds.slice().reverse().map((r) => [String(r.round), bytes(r.down), bytes(r.up), bytes(r.allDown), bytes(r.allUp), duration(r.seconds)]),
    }));
    return (run) => {
      const xs = run.rounds.map((r) => r.round);
      const series = (down, up) => [
        { label: "down", color: "--s-clients", values: run.rounds.map((r) => r[down]) },
        { label: "up", color: "--s-worst", values: run.rounds.map((r) => r[up]), dash: [5, 3] },
      ];
      each.set(xs, series("down", "up"));
      total.set(xs, series("allDown", "allUp"));
      const last = run.last;
      if (last) {
        const size = run.start.parameters ? ` The model has ${count(run.start.parameters)} parameters, ${bytes(4 * run.start.parameters)} as 32-bit numbers.` : "";
        setText($(".note", section), `${bytes(last.allDown + last.allUp)} in ${plural(run.rounds.length, "round")}: ${bytes(last.allDown)} down, ${bytes(last.allUp)} up.${size}`);
      }
      fillTable(run);
    };
  });
})();
