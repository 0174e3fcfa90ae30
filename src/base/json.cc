#include "base/json.h"

template class nlohmann::basic_json<>;
template class nlohmann::basic_json<nlohmann::ordered_map>;
template class nlohmann::detail::serializer<nlohmann::json>;
template class nlohmann::detail::serializer<nlohmann::ordered_json>;
template class nlohmann::detail::parser<nlohmann::json, tidepool::JsonStringInput>;
template class nlohmann::detail::parser<nlohmann::json, tidepool::JsonViewInput>;
template class nlohmann::detail::lexer<nlohmann::json, tidepool::JsonStringInput>;
template class nlohmann::detail::lexer<nlohmann::json, tidepool::JsonViewInput>;
template class nlohmann::detail::json_sax_dom_parser<nlohmann::json>;
template class nlohmann::detail::json_sax_dom_callback_parser<nlohmann::json>;
