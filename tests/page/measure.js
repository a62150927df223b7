// What is wrong with how the page looks, as sentences: cut, overlapping or sideways, or text and lines too faint (WCAG 2.2 AA).
(() => {
  const TEXT = 4.5, SHAPE = 3;
  const problems = [];
  const name = ({ tagName, id, classList }) => tagName.toLowerCase() + (id ? "#" + id : [...classList].map((one) => "." + one).join(""));
  const quoted = (node) => `"${node.data.trim().slice(0, 40)}" in ${name(node.parentElement)}`;

  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  // Any colour that a computed style may hold, as red, green, blue, alpha.
  const colour = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((part, n) => part * a + below[n] * (1 - a));
  const ground = (element) => {
    if (!element) { problems.push("nothing is behind the page"); return [255, 255, 255]; }
    const style = getComputedStyle(element);
    if (style.backgroundImage !== "none") problems.push(`${name(element)} has a picture behind it`);
    if (style.opacity !== "1") problems.push(`${name(element)} is half transparent`);
    const own = colour(style.backgroundColor);
    return own[3] === 1 ? own : over(own, ground(element.parentElement));
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => { part /= 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [high, low] = [light(one.slice(0, 3)), light(other.slice(0, 3))].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const hold = (what, front, back, least) => {
    const ratio = contrast(over(colour(front), back), back);
    if (ratio < least) problems.push(`${what}: contrast ${ratio.toFixed(2)}, at least ${least}`);
  };

  // For screen readers alone: one pixel large, or clipped away.
  const isUnseen = (element) => {
    for (; element; element = element.parentElement) {
      if (getComputedStyle(element).clipPath === "inset(50%)") return true;
    }
    return false;
  };
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && !isUnseen(element);

  const texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || /^(script|style)$/i.test(parent.tagName) || parent.closest("meter") || !isShown(parent)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const boxes = [...range.getClientRects()].filter((box) => box.width > 0.5);
    if (!boxes.length) problems.push(`${quoted(node)} has no place`);
    // What a producer or a library wrote may be one endless word.
    for (const word of parent.closest("code") ? [] : node.data.matchAll(/(?<!\S)\S{2,16}(?!\S)/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const tops = new Set([...range.getClientRects()].filter((box) => box.width > 0.5).map((box) => box.top));
      if (tops.size > 1) problems.push(`"${word[0]}" is broken in ${quoted(node)}`);
    }
    texts.push({ node, parent, boxes });
  }
  if (texts.length < 5) problems.push(`there is hardly any text: ${texts.length}`);

  for (const { node, parent, boxes } of texts) {
    hold(quoted(node), getComputedStyle(parent).color, ground(parent), TEXT);
    for (const box of boxes) {
      if (box.left < -0.5 || box.right > innerWidth + 0.5) problems.push(`${quoted(node)} is beyond the screen's edge`);
      for (let around = parent; around; around = around.parentElement) {
        const style = getComputedStyle(around), frame = around.getBoundingClientRect();
        if (style.overflowX !== "visible" && around !== document.documentElement && around !== document.body
            && (box.right > frame.right + 0.5 || box.left < frame.left - 0.5)) problems.push(`${quoted(node)} is cut by ${name(around)}`);
        const isBox = style.display !== "inline" && (parseFloat(style.borderLeftWidth) > 0 || around === parent);
        if (isBox && box.right > frame.right + 1) problems.push(`${quoted(node)} sticks out of ${name(around)}`);
      }
    }
  }
  // Boxes of lines touch by their leading; letters do not.
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
  texts.forEach((one, n) => texts.slice(n + 1).forEach((other) => {
    const isOver = one.boxes.some((a) => other.boxes.some((b) => meet(a, b)));
    if (isOver) problems.push(`${quoted(one.node)} and ${quoted(other.node)} overlap`);
  }));
  const things = [...document.querySelectorAll("button, input, svg, meter, .card, #verdict")].filter(isShown);
  for (const thing of things) {
    const frame = thing.getBoundingClientRect();
    for (const { node, boxes } of texts) {
      if (thing.contains(node)) continue;
      if (boxes.some((box) => meet(box, frame))) problems.push(`${quoted(node)} is over ${name(thing)}`);
    }
    for (const other of things) {
      const isInside = thing.contains(other) || other.contains(thing);
      if (!isInside && meet(frame, other.getBoundingClientRect())) problems.push(`${name(thing)} and ${name(other)} overlap`);
    }
    if (/^(button|input)$/i.test(thing.tagName)) {
      hold(`the edge of ${name(thing)}`, getComputedStyle(thing).borderTopColor, ground(thing.parentElement), SHAPE);
      if (frame.height < 24 || frame.width < 24) problems.push(`${name(thing)} is too small for a finger`);
      if (thing.scrollWidth > thing.clientWidth + 1) problems.push(`what is in ${name(thing)} is cut`);
    }
  }
  for (const line of document.querySelectorAll("svg .line")) {
    if (isShown(line)) hold(name(line), getComputedStyle(line).stroke, ground(line.closest("svg")), SHAPE);
  }
  for (const element of document.querySelectorAll("body *")) {
    const isFramed = /auto|scroll|hidden/.test(getComputedStyle(element).overflowX);
    if (isFramed && isShown(element) && element.scrollWidth > element.clientWidth + 1) problems.push(`${name(element)} scrolls sideways`);
  }
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) problems.push(`the page is ${wide} px wider than the screen`);
  if (document.getAnimations().length) problems.push("something moves");
  return [...new Set(problems)].slice(0, 30);
})()
