"use strict";
// What a robust rule counted clients' updates for, in the rounds whose columns are here.

(() => {
  const { $, setText, known, number, percent, plural } = Base;
  const { panel, table, LISTED } = Panels;

  const LEAST = 0.01; // of what it would count for in a mean: below, an update was left out

  panel("kept", (run) => run.rounds.some((r) => r.columns && r.columns.kept), (section) => (run) => {
    const rounds = run.rounds.filter((r) => r.columns && r.columns.kept);
    const last = rounds[rounds.length - 1];
    const of = new Map(); // client -> what it counted for, round by round
    for (const round of rounds) {
      round.cohort.each((client, i) => {
        const value = round.columns.kept[i];
        if (!known(value)) return;
        if (!of.has(client)) of.set(client, { values: [], last: null });
        of.get(client).values.push(value);
        if (round === last) of.get(client).last = value;
      });
    }
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const out = (values) => values.filter((v) => v < LEAST).length;
    const rows = [...of].sort((a, b) => mean(a[1].values) - mean(b[1].values));
    const all = rows.flatMap(([, { values }]) => values);
    setText($(".note", section), `${(run.start.config || {}).aggregate}: of ${plural(all.length, "update")} in ${plural(rounds.length, "round")}, ${out(all)} counted for nothing.`);
    $(".body", section).replaceChildren(table(
      ["Client", `Round ${last.round}`, "Mean", "Left out", "of rounds"],
      rows.slice(0, LISTED).map(([client, { values, last: now }]) =>
        [run.nameOf(client), known(now) ? number(now, 2) : "", number(mean(values), 2), percent(out(values) / values.length, 0), String(values.length)]),
    ));
  });
})();
