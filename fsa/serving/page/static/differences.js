// Marks the words of a text that another text does not have at that place.

/** Splits a text into words with the white space that follows each. */
const words = (text) => text.match(/\S+\s*/g) ?? [];

/**
 * Returns which words of `text` are not in the longest common subsequence with `other`.
 * Texts of answers have some hundred words, so that a table of all pairs is small.
 */
export function differing(text, other) {
  const [a, b] = [words(text), words(other)];
  const [x, y] = [a, b].map((list) => list.map((word) => word.trim()));
  const length = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      length[i][j] = x[i] === y[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const found = [];
  for (let i = 0, j = 0; i < x.length; i++) {
    while (j < y.length && x[i] !== y[j] && length[i][j + 1] > length[i + 1][j]) j++;
    const same = j < y.length && x[i] === y[j];
    found.push([a[i], !same]);
    if (same) j++;
  }
  return found;
}

/** Shows a text in an element, with the words marked that `other` does not have. */
export function showDifferences(element, text, other) {
  const parts = differing(text, other).map(([word, differs]) => {
    if (!differs) return document.createTextNode(word);
    const mark = document.createElement("mark");
    mark.textContent = word;
    return mark;
  });
  element.replaceChildren(...parts);
}
