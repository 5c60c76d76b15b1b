// Filters over all images that the gallery shows; without it, its pages do.
(() => {
  "use strict";
  const PAGE = 100;
  const { sources, labels, images } = JSON.parse(document.getElementById("images").textContent);
  const form = document.getElementById("filter");
  const pages = document.getElementById("pages");
  const matches = document.getElementById("matches");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  let chosen = [];

  const put = (parent, name, text, attributes = {}) => {
    const element = document.createElement(name);
    if (text) element.textContent = text;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  };

  const tile = ([thumb, told, title, below, source]) => {
    const figure = put(matches, "figure", "", { class: "tile" });
    if (thumb) {
      const side = { width: 112, height: 112 };
      put(figure, "img", "", { src: `thumbs/${thumb}`, alt: told, loading: "lazy", ...side });
    } else {
      put(figure, "div", "not readable", { class: "gone", role: "img", "aria-label": told });
    }
    const caption = put(figure, "figcaption", "");
    put(caption, "b", title, { title });
    put(caption, "span", sources[source] ?? "", { class: "from" });
    put(caption, "span", below);
  };

  const show = () => {
    const start = matches.children.length;
    chosen.slice(start, start + PAGE).forEach(tile);
    more.hidden = matches.children.length >= chosen.length;
  };

  const apply = () => {
    const wanted = Object.fromEntries(
      [...new FormData(form)].filter(([, value]) => value !== ""));
    const any = Object.keys(wanted).length > 0;
    const first = wanted.from === undefined ? -Infinity : Number(wanted.from);
    const last = wanted.to === undefined ? Infinity : Number(wanted.to);
    chosen = !any ? [] : images.filter(([, , , , source, label, round]) =>
      (wanted.source === undefined || sources[source] === wanted.source) &&
      (wanted.class === undefined || labels[label] === wanted.class) &&
      (round === null ? wanted.from === undefined && wanted.to === undefined
        : round >= first && round <= last));
    pages.hidden = any;
    matches.replaceChildren();
    show();
    found.textContent = any
      ? `${chosen.length.toLocaleString("en")} of ${images.length.toLocaleString("en")} shown images match`
      : "";
    history.replaceState(null, "", any ? `#${new URLSearchParams(wanted)}` : "#");
  };

  const read = () => {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (form.elements[name]) form.elements[name].value = value;
    }
    apply();
  };

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  more.addEventListener("click", () => {
    const before = matches.children.length;
    show();
    // Whoever came by keyboard goes on from the first new image
    const next = matches.children[before];
    if (next) { next.tabIndex = -1; next.focus(); }
  });
  window.addEventListener("hashchange", read);
  if (location.hash.includes("=")) read();
})();
