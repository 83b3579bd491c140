#include <malloc.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>

#include "assign.hpp"
#include "embedding/machine.hpp"
#include "embedding/pictures.hpp"
#include "embedding/stream.hpp"
#include "itae/error.hpp"
#include "itae/session.hpp"
#include "names.hpp"
#include "options.hpp"
#include "output.hpp"
#include "progress.hpp"
#include "sources.hpp"
#include "verify.hpp"

namespace itae::command {
namespace {

constexpr int interrupted = 130;  // as shells have it: 128 + SIGINT

std::atomic<bool> has_signal{false};
static_assert(std::atomic<bool>::is_always_lock_free, "a handler may write nothing else");

/// Let Ctrl-C and SIGTERM end the run between batches, so that half-written files go; a second one ends it at once.
void handle_signals() {
    struct sigaction action {};
    action.sa_handler = [](int) { has_signal = true; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
}

void say(const std::string& line) { std::fprintf(stderr, "%s\n", plain(line).c_str()); }

/// `/photos/cats/1.jpg` of a root and a path.
std::string location(const std::string& root, const std::string& path) {
    return path.empty() ? root : root.back() == '/' ? root + path : root + "/" + path;
}

/// Open a session with little memory. Weights are freed and taken again, larger and smaller, while ONNX Runtime
/// arranges them: as blocks of their own they go back to the system at once, and leave no holes. Later, decoders reuse
/// memory.
std::unique_ptr<Session> open(const Options& options) {
#ifdef __GLIBC__
    ::mallopt(M_MMAP_THRESHOLD, 128 << 10);
#endif
    std::unique_ptr<Session> session = open_session(options.model, options.load);
#ifdef __GLIBC__
    ::malloc_trim(0);
    ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
    ::mallopt(M_TRIM_THRESHOLD, 64 << 20);
#endif
    return session;
}

int embed(const Options& options) {
    const auto start = std::chrono::steady_clock::now();
    const Manifest manifest = Manifest::read(options.model);  // its files are checked where they are loaded
    manifest.check_embedding();
    std::unique_ptr<OldClusters> old;
    if (!options.assign.empty()) {
        old = std::make_unique<OldClusters>(options.assign, manifest);
        if (!old->warning().empty()) say("itae-embed: warning: " + old->warning());
    }
    PairWriter writer(options.out, manifest.embedding_width());
    for (const std::string& image : options.images)
        if (image == "-" && ::isatty(STDIN_FILENO) == 1)
            throw Error(ErrorKind::usage,
                        "`-` takes a list of paths from standard input: pipe one in, as from find photos -print0");
    Sources sources(options.images, std::cin);
    const std::unique_ptr<Session> session = open(options);

    std::int64_t failed = 0;
    std::string first_failure;
    End end = End::stopped;
    {
        Progress progress(sources.total(), options.quiet, stderr);
        StreamOptions how;
        how.batch = session->chosen_batch(options.load.batch);
        how.workers = options.load.threads > 0 ? options.load.threads : usable_cores();
        how.stopped = [] { return has_signal.load(); };
        const Prepare prepare = [&](const Entry& entry, void* target) {
            prepare_file(location(entry.root, entry.path), manifest.preprocessing, target);
        };
        end = embed_stream(
            *session, [&] { return sources.next(); }, prepare, how,
            [&](const Row& row) {
                if (row.embedding != nullptr) {
                    std::optional<std::int64_t> label;
                    if (old) label = old->nearest(row.embedding, location(row.entry.root, row.entry.path));
                    writer.add(row.entry, row.embedding, label);
                } else {
                    writer.fail(row.entry, row.error);
                    if (failed++ == 0) first_failure = location(row.entry.root, row.entry.path) + ": " + row.error;
                }
                progress.show(writer.rows(), failed);
            });
    }
    if (end == End::stopped) {
        say("itae-embed: interrupted; nothing was written");
        return interrupted;
    }
    if (writer.rows() == 0) {
        throw Error(ErrorKind::mismatch, "none of " + std::to_string(failed) + " images could be embedded" +
                                             (first_failure.empty() ? "" : "; the first: " + first_failure));
    }
    writer.publish();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    char time[32];
    std::snprintf(time, sizeof time, "%.1f", seconds);
    say("embedded " + std::to_string(writer.rows()) + (writer.rows() == 1 ? " image" : " images") + " into " +
        options.out + " in " + time + " s");
    if (failed > 0)
        say(std::to_string(failed) + " failed: see " + writer.lines_path() + "; the first: " + first_failure);
    if (!sources.skipped().empty()) say(as_line(sources.skipped()));
    if (options.json) {
        const nlohmann::ordered_json summary{
            {"out", printable(options.out)},
            {"lines", printable(writer.lines_path())},
            {"embedded", writer.rows()},
            {"failed", failed},
            {"skipped", sources.skipped()},
            {"backend", session->name()},
            {"seconds", std::round(seconds * 1000) / 1000},
        };
        std::printf("%s\n", summary.dump(2).c_str());
    }
    return 0;
}

int run(int count, const char* const* arguments) {
    const Options options = parse(count, arguments);
    if (!options.verify) return embed(options);
    const std::unique_ptr<Session> session = open(options);
    if (verify(*session, options.load.batch, options.json)) return 0;
    say("itae-embed: " + options.model + " is off: it does not give the results of its golden sample");
    return 1;
}

}  // namespace
}  // namespace itae::command

int main(int count, char** arguments) {
    using namespace itae;
    command::handle_signals();
    try {
        const int code = command::run(count, arguments);
        if (std::fflush(stdout) != 0) throw Error(ErrorKind::io, "can't write to standard output");
        return code;
    } catch (const command::Printed& printed) {
        std::fputs(printed.text.c_str(), stdout);
        return 0;
    } catch (const Error& error) {
        command::say(std::string("itae-embed: ") + error.what());
        return error.kind() == ErrorKind::mismatch ? 1 : 2;
    } catch (const std::bad_alloc&) {
        command::say("itae-embed: there is not enough memory; a smaller --batch takes less");
    } catch (const std::exception& error) {
        command::say(std::string("itae-embed: ") + error.what());
    }
    return 2;
}
