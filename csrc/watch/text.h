// Reading text from the left without copying it: what the parsers of log lines share.
// Every function stays inside the view it was given and answers by false or an empty view; no byte is special to it.
#pragma once

#include <cstdint>
#include <string_view>

namespace gft::watch {

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr int hex_value(char c) {
  return is_digit(c) ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

struct Cursor {
  std::string_view left;

  bool done() const { return left.empty(); }
  char peek() const { return left.empty() ? '\0' : left.front(); }
  bool skip(std::string_view word) {
    if (!left.starts_with(word)) return false;
    left.remove_prefix(word.size());
    return true;
  }
  void spaces() {
    while (peek() == ' ' || peek() == '\t') left.remove_prefix(1);
  }
  // Goes behind the next `word`, false (and nowhere) when there is none.
  bool jump(std::string_view word) {
    size_t at = left.find(word);
    if (at == left.npos) return false;
    left.remove_prefix(at + word.size());
    return true;
  }
  std::string_view digits() {
    size_t n = 0;
    while (n < left.size() && is_digit(left[n])) ++n;
    return take(n);
  }
  // A decimal number of at most 18 digits; a longer one is no number.
  bool number(int64_t &out) {
    size_t n = 0;
    int64_t value = 0;
    for (; n < left.size() && is_digit(left[n]); ++n) {
      if (n == 18) return false;
      value = value * 10 + (left[n] - '0');
    }
    if (!n) return false;
    left.remove_prefix(n);
    out = value;
    return true;
  }
  // "0x" and up to 16 hexadecimal digits, as text with its "0x".
  std::string_view hex_word() {
    if (!left.starts_with("0x")) return {};
    size_t n = 2;
    while (n < left.size() && n < 18 && hex_value(left[n]) >= 0) ++n;
    return n > 2 ? take(n) : std::string_view();
  }
  // Up to one of `ends`, which stays; everything when there is none.
  std::string_view until(std::string_view ends) { return take(left.find_first_of(ends)); }
  std::string_view take(size_t n) {
    std::string_view out = left.substr(0, n);
    left.remove_prefix(out.size());
    return out;
  }
};

inline bool contains(std::string_view text, std::string_view word) { return text.find(word) != text.npos; }

// FNV-1a, continued: tells values apart, not safe against whoever chooses them.
inline uint64_t mixed(uint64_t hash, std::string_view text) {
  for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return (hash ^ 0xff) * 1099511628211u;
}

}  // namespace gft::watch
