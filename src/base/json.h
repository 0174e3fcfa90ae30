#pragma once

// JSON documents: nlohmann::json and nlohmann::ordered_json, whose code is compiled once in base/json.cc and not in each of
// the many sources that use them. Include this and not <nlohmann/json.hpp>.

#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

namespace tidepool {

// What nlohmann reads a std::string and a std::string_view through.
using JsonStringInput = decltype(nlohmann::detail::input_adapter(std::declval<const std::string&>()));
using JsonViewInput = decltype(nlohmann::detail::input_adapter(std::declval<const std::string_view&>()));

}  // namespace tidepool

extern template class nlohmann::basic_json<>;
extern template class nlohmann::basic_json<nlohmann::ordered_map>;
extern template class nlohmann::detail::serializer<nlohmann::json>;
extern template class nlohmann::detail::serializer<nlohmann::ordered_json>;
extern template class nlohmann::detail::parser<nlohmann::json, tidepool::JsonStringInput>;
extern template class nlohmann::detail::parser<nlohmann::json, tidepool::JsonViewInput>;
extern template class nlohmann::detail::lexer<nlohmann::json, tidepool::JsonStringInput>;
extern template class nlohmann::detail::lexer<nlohmann::json, tidepool::JsonViewInput>;
extern template class nlohmann::detail::json_sax_dom_parser<nlohmann::json>;
extern template class nlohmann::detail::json_sax_dom_callback_parser<nlohmann::json>;
