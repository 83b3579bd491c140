#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace itae {

/// runtime/contract/manifest.schema.json, the JSON Schema of a manifest.
extern const char* const manifest_schema;

/// The first fault of some JSON, in the words of Python's runtime where they are short.
struct SchemaFault {
    std::string where;      ///< `options.image_size.1`
    std::string message;    ///< `Input should be a valid integer`
    bool is_newer = false;  ///< a word that a newer version may know
};

/// Holds JSON to a JSON Schema, as far as ours use draft 2020-12.
///
/// Stricter than the draft, as Python's records are: 6.0 is no integer.
/// @returns the first fault, in the order of the schema's properties; nothing if there is none.
/// @throws std::logic_error the schema uses a keyword or a pattern that is not known here.
std::optional<SchemaFault> find_fault(const nlohmann::json& value, const nlohmann::ordered_json& schema);

}  // namespace itae
