#include "contract/schema.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace itae {
namespace {

using Schema = nlohmann::ordered_json;  // its properties in their order: the first fault is the first of these
using Value = nlohmann::json;

bool is_sha256(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

bool is_file_name(const std::string& text) {
    return !text.empty() && text != "." && text != ".." &&
           text.find_first_of(std::string("/\\\0", 3)) == std::string::npos;
}

struct Pattern {
    const char* text;
    bool (*matches)(const std::string&);
};

/// The patterns of our schema as functions: std::regex overflows the stack on long hostile texts.
constexpr Pattern patterns[] = {
    {"^[0-9a-f]{64}$", is_sha256},
    {R"(^(\.{0,2}[^/\\\x00.]|\.{3})[^/\\\x00]*$)", is_file_name},
};

bool matches(const std::string& text, const std::string& pattern) {
    for (const Pattern& one : patterns) {
        if (pattern == one.text) return one.matches(text);
    }
    throw std::logic_error("the schema has a pattern that C++ does not know: " + pattern);
}

/// Number of Unicode characters of a text in UTF-8.
std::int64_t characters(const std::string& text) {
    return std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; });
}

/// Whether two numbers of JSON are in this order, at full precision where both are integers.
bool is_less(const Value& one, const Schema& other) {
    if (one.is_number_unsigned() && other.is_number_unsigned())
        return one.get<std::uint64_t>() < other.get<std::uint64_t>();
    if (one.is_number_integer() && other.is_number_integer() && !one.is_number_unsigned()) {
        return one.get<std::int64_t>() < other.get<std::int64_t>();
    }
    return one.get<double>() < other.get<double>();
}

bool has_type(const Value& value, const std::string& type) {
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "null") return value.is_null();
    if (type == "number") return value.is_number();
    if (type == "integer") return value.is_number_integer();
    throw std::logic_error("the schema has a type that C++ does not know: " + type);
}

std::string expected(const std::string& type) {
    if (type == "object") return "Input should be an object";
    if (type == "null") return "Input should be null";
    return "Input should be a valid " + type;
}

std::string quoted(const Schema& word) { return word.is_string() ? "'" + word.get<std::string>() + "'" : word.dump(); }

std::string one_of(const Schema& words) {
    std::string text;
    for (std::size_t index = 0; index < words.size(); ++index) {
        if (index > 0) text += index + 1 == words.size() ? " or " : ", ";
        text += quoted(words[index]);
    }
    return text;
}

bool equals(const Value& value, const Schema& word) { return value == Value(word); }

class Check {
  public:
    explicit Check(const Schema& root) : root_(root) {}

    void run(const Value& value, const Schema& schema, const std::string& where) {
        if (fault) return;
        refuse_unknown_keywords(schema);
        if (const auto found = schema.find("$ref"); found != schema.end()) run(value, referred(*found), where);
        if (const auto found = schema.find("const"); found != schema.end() && !equals(value, *found)) {
            return refuse(where, "Input should be " + quoted(*found), true);
        }
        if (const auto found = schema.find("enum"); found != schema.end()) {
            const auto is_same = [&value](const Schema& word) { return equals(value, word); };
            if (std::none_of(found->begin(), found->end(), is_same)) {
                return refuse(where, "Input should be " + one_of(*found), true);
            }
        }
        if (const auto found = schema.find("type"); found != schema.end() && !has_type(value, *found)) {
            return refuse(where, expected(*found));
        }
        if (const auto found = schema.find("anyOf"); found != schema.end()) check_any(value, *found, where);
        if (const auto found = schema.find("oneOf"); found != schema.end()) check_tagged(value, schema, where);
        if (value.is_number()) check_number(value, schema, where);
        if (value.is_string()) check_text(value.get_ref<const std::string&>(), schema, where);
        if (value.is_array()) check_array(value, schema, where);
        if (value.is_object()) check_object(value, schema, where);
    }

    std::optional<SchemaFault> fault;

  private:
    void refuse(const std::string& where, const std::string& message, bool is_newer = false) {
        if (!fault) fault = SchemaFault{where, message, is_newer};
    }

    static void refuse_unknown_keywords(const Schema& schema) {
        static const std::vector<std::string> known{"$schema",
                                                    "$defs",
                                                    "$ref",
                                                    "title",
                                                    "description",
                                                    "default",
                                                    "const",
                                                    "enum",
                                                    "type",
                                                    "anyOf",
                                                    "oneOf",
                                                    "discriminator",
                                                    "minimum",
                                                    "exclusiveMinimum",
                                                    "pattern",
                                                    "maxLength",
                                                    "items",
                                                    "prefixItems",
                                                    "minItems",
                                                    "maxItems",
                                                    "properties",
                                                    "required",
                                                    "additionalProperties",
                                                    "if",
                                                    "then",
                                                    "else"};
        for (const auto& [keyword, content] : schema.items()) {
            if (std::find(known.begin(), known.end(), keyword) == known.end()) {
                throw std::logic_error("the schema has a keyword that C++ does not know: " + keyword);
            }
        }
    }

    const Schema& referred(const std::string& reference) const {
        return root_.at(Schema::json_pointer(reference.substr(1)));
    }

    static std::string inside(const std::string& where, const std::string& name) {
        return where.empty() ? name : where + "." + name;
    }

    bool is_valid(const Value& value, const Schema& schema) const {
        Check inner(root_);
        inner.run(value, schema, "");
        return !inner.fault;
    }

    void check_any(const Value& value, const Schema& choices, const std::string& where) {
        for (const Schema& choice : choices) {
            if (is_valid(value, choice)) return;
        }
        run(value, choices.front(), where);  // the fault of the first, which is the one that is not null
    }

    void check_tagged(const Value& value, const Schema& schema, const std::string& where) {
        const Schema& discriminator = schema.at("discriminator");
        const std::string& property = discriminator.at("propertyName").get_ref<const std::string&>();
        const Schema& mapping = discriminator.at("mapping");
        if (!value.is_object()) return refuse(where, "Input should be an object");
        const auto tag = value.find(property);
        if (tag == value.end()) return refuse(where, "Unable to extract tag using discriminator '" + property + "'");
        const auto found = tag->is_string() ? mapping.find(tag->get_ref<const std::string&>()) : mapping.end();
        if (found != mapping.end()) {
            return run(value, referred(*found), inside(where, tag->get_ref<const std::string&>()));
        }
        std::string tags;
        for (const auto& [name, content] : mapping.items()) tags += (tags.empty() ? "'" : ", '") + name + "'";
        const std::string given = tag->is_string() ? tag->get<std::string>() : "of another type";
        refuse(
            where,
            "Input tag '" + given + "' found using '" + property + "' does not match any of the expected tags: " + tags,
            true);
    }

    void check_number(const Value& value, const Schema& schema, const std::string& where) {
        const auto least = schema.find("minimum");
        if (least != schema.end() && is_less(value, *least)) {
            return refuse(where, "Input should be greater than or equal to " + least->dump());
        }
        const auto bound = schema.find("exclusiveMinimum");
        if (bound != schema.end() && (is_less(value, *bound) || equals(value, *bound))) {
            return refuse(where, "Input should be greater than " + bound->dump());
        }
    }

    void check_text(const std::string& text, const Schema& schema, const std::string& where) {
        const auto most = schema.find("maxLength");
        if (most != schema.end() && characters(text) > most->get<std::int64_t>()) {
            return refuse(where, "String should have at most " + most->dump() + " characters");
        }
        const auto pattern = schema.find("pattern");
        if (pattern != schema.end() && !matches(text, *pattern)) {
            return refuse(where, "String should match pattern '" + pattern->get<std::string>() + "'");
        }
    }

    void check_array(const Value& value, const Schema& schema, const std::string& where) {
        const auto given = [&value] { return " after validation, not " + std::to_string(value.size()); };
        const auto first = schema.find("prefixItems");
        const std::size_t fixed = first == schema.end() ? 0 : first->size();
        for (std::size_t index = 0; index < fixed; ++index) {
            const std::string at = inside(where, std::to_string(index));
            if (index >= value.size()) return refuse(at, "Field required");
            run(value[index], (*first)[index], at);
        }
        if (const auto items = schema.find("items"); items != schema.end()) {
            for (std::size_t index = fixed; index < value.size() && !fault; ++index) {
                run(value[index], *items, inside(where, std::to_string(index)));
            }
        }
        const auto least = schema.find("minItems");
        if (least != schema.end() && value.size() < least->get<std::size_t>()) {
            return refuse(where, "Tuple should have at least " + least->dump() + " item" + given());
        }
        const auto most = schema.find("maxItems");
        if (most != schema.end() && value.size() > most->get<std::size_t>()) {
            return refuse(where, "Tuple should have at most " + most->dump() + " items" + given());
        }
    }

    void check_object(const Value& value, const Schema& schema, const std::string& where) {
        const auto required = schema.find("required");
        if (const auto properties = schema.find("properties"); properties != schema.end()) {
            for (const auto& [name, content] : properties->items()) {
                if (const auto member = value.find(name); member != value.end()) {
                    run(*member, content, inside(where, name));
                } else if (required != schema.end() &&
                           std::find(required->begin(), required->end(), name) != required->end()) {
                    refuse(inside(where, name), "Field required");
                }
            }
        }
        const auto others = schema.find("additionalProperties");
        if (others != schema.end() && others->is_object()) {
            for (const auto& [name, content] : value.items()) run(content, *others, inside(where, name));
        }
        if (const auto condition = schema.find("if"); condition != schema.end()) {
            const auto branch = schema.find(is_valid(value, *condition) ? "then" : "else");
            if (branch != schema.end()) run(value, *branch, where);
        }
    }

    const Schema& root_;
};

}  // namespace

std::optional<SchemaFault> find_fault(const nlohmann::json& value, const nlohmann::ordered_json& schema) {
    Check check(schema);
    check.run(value, schema, "");
    return check.fault;
}

}  // namespace itae
