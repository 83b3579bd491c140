#include "contract/json.hpp"

#include <set>
#include <vector>

namespace itae {
namespace {

/// The reason in nlohmann's message, without its prefix `[json.exception.parse_error.101] `.
std::string reason(const std::string& message) {
    const auto at = message.find("] ");
    return at == std::string::npos ? message : message.substr(at + 2);
}

}  // namespace

nlohmann::json parse_json(ByteView text) {
    using Event = nlohmann::json::parse_event_t;
    std::vector<std::set<std::string>> names;  // of the members of each open object; empty sets for arrays
    const auto look = [&names](int, Event event, nlohmann::json& parsed) {
        if (event == Event::object_start || event == Event::array_start) {
            if (names.size() == max_json_depth) {
                throw NotJson("it has more than " + std::to_string(max_json_depth) + " levels");
            }
            names.emplace_back();
        } else if (event == Event::object_end || event == Event::array_end) {
            names.pop_back();
        } else if (event == Event::key && !names.back().insert(parsed.get<std::string>()).second) {
            // Of two equal ones some readers would take the first, others the last.
            throw NotJson("an object has two members of one name");
        }
        return true;
    };
    try {
        return nlohmann::json::parse(text.data, text.data + text.size, look);
    } catch (const nlohmann::json::exception& error) {
        throw NotJson(reason(error.what()));
    }
}

}  // namespace itae
