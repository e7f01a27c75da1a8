// What is wrong with an argument, as an error.

import { InvalidArgumentError } from './errors.js';

/** @param {string} option the argument's name @param {string} words what it should be */
export function invalid(option, words) {
  return new InvalidArgumentError(`${option}: ${words}`, { option });
}
