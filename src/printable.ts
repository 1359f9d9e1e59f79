// SPDX-License-Identifier: MIT

/**
 * Text from a guest as it may go to a terminal: a process or a module can have a name with escape
 * sequences or line ends in it. Control characters (C0, DEL, C1) become `\x1b`.
 */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (c) => {
    return `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`;
  });
}
