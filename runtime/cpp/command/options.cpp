#include "options.hpp"

#include <CLI/CLI.hpp>
#include <memory>

#include "backends/backends.hpp"
#include "embedding/machine.hpp"
#include "itae/error.hpp"
#include "itae/version.hpp"

namespace itae::command {
namespace {

constexpr const char* examples = R"(examples:
  itae-embed itae.onnx photos/ --out embeddings.npy
  itae-embed itae.onnx cat.jpg more/ --out embeddings.npy --threads 4
  find photos -name '*.jpg' -print0 | itae-embed itae.onnx - --out embeddings.npy
  itae-embed itae.onnx new/ --out new.npy --assign clusters/
  itae-embed itae.onnx --verify

IMAGES are image files; folders, searched through; lists of paths (LIST.txt, or - for standard input), relative to the
current folder. JPEG, PNG and WebP are read; BMP, TIFF, GIF, AVIF and HEIC become lines with an error, and are read by
`python -m runtime embed`, as are tars, parquet and URLs. Passed over in folders: other kinds of files, hidden ones, and
those of systems (Thumbs.db, @eaDir, __MACOSX ...); links to folders.

X.npy is (n, C) float32. X.jsonl beside it has a line for each image, in the order of the paths:
{"row": i, "root": ..., "path": ...}, or {"root": ..., "path": ..., "error": ...} for one that can't be embedded. Both
appear when both are whole, and a pair that lies there is replaced as a whole. `python -m runtime cluster X.npy` takes them.

ONNX Runtime's library is that of --ort-library, of the environment variable ITAE_ONNXRUNTIME, one beside this program,
or the one that the loader finds (LD_LIBRARY_PATH).

exit code: 0 if any image was embedded or the model keeps every limit, 1 if none was or the model is off, 2 for bad use,
a model that is refused, or something that this machine lacks, 130 after Ctrl-C)";

std::string about() {
    std::string names;
    for (const std::string& backend : built_backends()) names += (names.empty() ? "" : ", ") + backend;
    return std::string("itae-embed ") + version() + "\nbackends: " + (names.empty() ? "none" : names) + "\n";
}

}  // namespace

Options parse(int count, const char* const* arguments) {
    Options options;
    CLI::App app{"Embed images into X.npy, and X.jsonl beside it, with a model of the exporter.", "itae-embed"};
    app.footer(examples);
    app.add_option("MODEL", options.model, "X.onnx or X.engine, its manifest beside it")->required()->type_name("");
    app.add_option("IMAGES", options.images, "image files, folders, lists (.txt), or - for a list on standard input")
        ->type_name("");
    app.add_option("--out", options.out, "array to write, and X.jsonl beside it")->type_name("X.npy");
    app.add_option("--assign", options.assign,
                   "centroids.npy or folder of an older run of `cluster`: adds \"label\" to each line of X.jsonl")
        ->type_name("PATH");
    app.add_flag("--verify", options.verify, "replay the model's golden sample; takes no IMAGES and no --out");
    app.add_option("--batch", options.load.batch, "images to run at a time (default: 8; an engine's own)")
        ->type_name("N")
        ->check(CLI::Range(std::int64_t{1}, std::int64_t{2147483647}));
    app.add_option(
           "--threads", options.load.threads,
           "threads that compute and decode on the CPU (default: the cores of this process, or a container's quota)")
        ->type_name("N")
        ->check(CLI::Range(1, max_threads));
    app.add_option("--backend", options.load.backend, "what runs the model (default: what it was made for)")
        ->type_name("auto|onnxruntime|tensorrt|tensorrt-rtx");
    app.add_option("--device", options.load.device, "where it runs (default: cpu for ONNX, cuda for an engine)")
        ->type_name("cpu|cuda|cuda:N");
    app.add_option("--ort-library", options.load.ort_library, "ONNX Runtime's libonnxruntime.so, or its folder")
        ->type_name("PATH");
    app.add_flag("--json", options.json, "print what was done as JSON");
    app.add_flag("--quiet", options.quiet, "no progress on stderr");
    bool wants_version = false;
    app.add_flag("--version", wants_version, "print the version and the backends that are built in")
        ->trigger_on_parse();
    try {
        app.parse(count, arguments);
    } catch (const CLI::CallForHelp&) {
        throw Printed{app.help()};
    } catch (const CLI::ParseError& error) {
        if (wants_version) throw Printed{about()};
        throw Error(ErrorKind::usage, std::string(error.what()) + "; see `itae-embed --help`");
    }
    if (wants_version) throw Printed{about()};
    const auto refuse = [](const std::string& what) {
        throw Error(ErrorKind::usage, what + "; see `itae-embed --help`");
    };
    for (const std::string& text : options.images)
        if (text.empty()) refuse("an empty path");  // from an unset variable, for example
    if (options.model.empty()) refuse("MODEL is an empty path");
    if (options.verify) {
        if (!options.images.empty() || !options.out.empty() || !options.assign.empty())
            refuse("--verify takes no IMAGES, no --out and no --assign");
        return options;
    }
    if (options.images.empty()) refuse("no IMAGES: give files, folders, or - for a list on standard input");
    if (options.out.empty()) refuse("--out is required: the array to write, as --out embeddings.npy");
    return options;
}

}  // namespace itae::command
