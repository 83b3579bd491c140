#include "verify.hpp"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "itae/error.hpp"
#include "itae/verify.hpp"

namespace itae::command {
namespace {

using Json = nlohmann::ordered_json;

std::string as_text(const char* form, double value) {
    char text[64];
    std::snprintf(text, sizeof text, form, value);
    return text;
}

std::string limit(const char* relation, const std::optional<double>& value) {
    return value ? std::string("limit ") + relation + " " + as_text("%g", *value) : "not limited";
}

/// A remark for a golden sample without flagged patches, which shows no attenuation; else empty.
std::string attenuation(std::int64_t flagged, const std::optional<ThresholdCheck>& check) {
    if (flagged != 0) return "";
    if (!check) return "so this shows the model as it is without ITAE";
    return "so this shows no attenuation; the export compared it at " + plain(check->threshold) + ", " +
           std::to_string(check->flagged) + " patches flagged";
}

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }  // JSON has no NaN
Json number(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

bool verify(const Session& session, std::int64_t batch, bool as_json) {
    const Manifest& manifest = session.manifest();
    const ParityLimits& limits = manifest.limits;
    const auto [samples, flagged, parity, batches, failures, seconds] = itae::verify(session, batch);

    if (as_json) {
        Json outputs = Json::array();
        for (const TensorInfo& output : manifest.outputs) outputs.push_back(output.name);
        const Json report{
            {"model", manifest.model_path},
            {"backend", session.name()},
            {"passed", failures.empty()},
            {"samples", samples},
            {"outputs", outputs},
            {"max_abs", number(parity.max_abs)},
            {"min_cosine", number(parity.min_cosine)},
            {"norm_relative", number(parity.norm_relative)},
            {"max_relative", number(parity.max_relative)},
            {"flags_checked", parity.flags_checked},
            {"flags_differing", parity.flags_differing},
            {"flagged", manifest.layers.empty() ? Json(nullptr) : Json(flagged)},
            {"borderline", parity.borderline},
            {"left_out", parity.left_out},
            {"batches",
             {{"sizes", batches.sizes},
              {"rows", batches.rows},
              {"distance", number(batches.distance)},
              {"norm_relative", number(batches.norm_relative)},
              {"flags_differing", batches.flags_differing},
              {"borderline", batches.borderline}}},
            {"limits",
             {{"max_abs", number(limits.max_abs)},
              {"min_cosine", number(limits.min_cosine)},
              {"flag_margin", number(limits.flag_margin)},
              {"batch_distance", number(limits.batch_distance)},
              {"normalized", limits.normalized},
              {"max_relative", number(limits.max_relative)}}},
            {"failures", failures},
            {"seconds", std::round(seconds * 1000) / 1000},
        };
        std::printf("%s\n", report.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
        return failures.empty();
    }
    const auto row = [](const std::string& name, const std::string& found, const std::string& remark) {
        std::printf("  %-16s %-14s %s\n", name.c_str(), found.c_str(), remark.c_str());
    };
    std::printf("%s on %s: %lld golden samples, %.2f s\n", manifest.model_path.c_str(), session.name().c_str(),
                static_cast<long long>(samples), seconds);
    if (manifest.has_output("embedding") || manifest.has_output("patch_tokens")) {
        row("max abs", as_text("%.3g", parity.max_abs), limit("<=", limits.max_abs));
        row("min cosine", as_text("%.7f", parity.min_cosine), limit(">=", limits.min_cosine));
    }
    if (const std::vector<std::string> own = manifest.own_outputs(); !own.empty()) {
        std::string names;
        for (const std::string& name : own) names += (names.empty() ? "" : ", ") + plain(name);
        row("max relative", as_text("%.3g", parity.max_relative), limit("<=", limits.max_relative));
        row("outputs", std::to_string(own.size()), names);
    }
    if (manifest.has_output("artifact_norm"))
        row("norms, relative", as_text("%.3g", parity.norm_relative), limit("<=", limits.flag_margin));
    if (parity.flags_checked) {
        row("flags differing", std::to_string(parity.flags_differing),
            std::to_string(parity.borderline.size()) + " borderline samples, " +
                std::to_string(parity.left_out.size()) + " left out");
    } else if (!manifest.layers.empty()) {
        row("flags", "not compared", "artifact_mask is not an output of this model");
    }
    if (!manifest.layers.empty())
        row("flagged", std::to_string(flagged) + " patches", attenuation(flagged, manifest.threshold_check));
    std::string sizes;
    for (const std::int64_t size : batches.sizes) sizes += (sizes.empty() ? "" : ",") + std::to_string(size);
    if (batches.rows == 0) {
        row("batches", "not compared", "the model takes one image at a time");
    } else {
        row("batches", sizes, std::to_string(batches.rows) + " rows compared with the same images alone");
        row("batch distance", as_text("%.3g", batches.distance), limit("<=", limits.batch_distance));
    }
    for (const std::string& failure : failures) std::printf("  FAILED: %s\n", failure.c_str());
    if (failures.empty()) std::printf("  passed\n");
    return failures.empty();
}

}  // namespace itae::command
