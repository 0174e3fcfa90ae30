// What verbs print on stdout: JSON, and tables for people.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace tidepool::cli {

// Indented by two; bytes that are not UTF-8 become U+FFFD.
void PrintJson(const nlohmann::ordered_json& json);
// Columns padded to their widest cell; `right` has an 'r' for each column of numbers.
void PrintTable(const std::vector<std::vector<std::string>>& rows, const std::string& right);

}  // namespace tidepool::cli
