// Small text helpers.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tidepool {

// The candidate that `word` was most probably meant to be: fewest edits of single letters (exchanged neighbours are one edit), at
// most a third of the word's length (but always at least one). Empty if none is near.
std::string NearestName(std::string_view word, std::span<const std::string> candidates);

// The parts between separators; an empty text has no parts, "a,,b" has three.
std::vector<std::string> SplitText(std::string_view text, char separator);
std::string JoinText(std::span<const std::string> parts, std::string_view separator);
std::string_view TrimText(std::string_view text);

// `text` as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD.
std::string JsonQuoted(std::string_view text);

}  // namespace tidepool
