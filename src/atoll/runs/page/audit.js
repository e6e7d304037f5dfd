"use strict";
// What attacks on a run found: words, the images that were read, the ROC curve of membership.

(() => {
  const { $, h, setText, plural } = Base;
  const { panel } = Panels;
  const SIDE = 100;

  function svg(tag, props, ...children) {
    const element = document.createElementNS($(".brand svg").namespaceURI, tag);
    for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const picture = (bits, text) => h("img", { src: `data:image/png;base64,${bits}`, alt: text, width: 88, height: 88 });

  function curve(points) {
    const path = points.map(([a, b]) => `${(SIDE * a).toFixed(2)},${(SIDE * (1 - b)).toFixed(2)}`).join(" ");
    return svg("svg", { viewBox: `-1 -1 ${SIDE + 2} ${SIDE + 2}`, role: "img", "aria-label": "ROC curve: true over false positive rate" },
      svg("rect", { class: "frame", x: 0, y: 0, width: SIDE, height: SIDE }),
      svg("line", { class: "chance", x1: 0, y1: SIDE, x2: SIDE, y2: 0 }),
      svg("polyline", { class: "curve", points: path }));
  }

  panel("audit", (run) => Boolean(run.audit), (section) => (run) => {
    const { rows, samples, guesses, roc, caveat } = run.audit;
    $(".reads", section).hidden = !samples;
    $(".tells", section).hidden = !roc;
    $(".halves", section).hidden = !samples && !roc;
    if (samples) {
      $(".reconstructions", section).replaceChildren(
        h("div", null, h("small", null, "sample"), samples.map((bits, i) => picture(bits, `sample ${i + 1}`))),
        h("div", null, h("small", null, "read"), guesses.map((bits, i) => picture(bits, `what was read of sample ${i + 1}`))));
    }
    if (roc) {
      $(".roc", section).replaceChildren(h("small", { class: "up" }, "true positive rate"), curve(roc), h("small", null, "false positive rate; dashed: guessing"));
    }
    $(".verdicts", section).replaceChildren(...rows.map(({ attack, figure, verdict, leak }) =>
      h("li", { class: leak ? "leak" : null }, h("b", null, attack), h("span", null, figure), h("span", { class: "dim" }, verdict))));
    setText($(".note", section), `${caveat} Asked after ${plural(run.auditedAfter, "round")}.`);
  });
})();
