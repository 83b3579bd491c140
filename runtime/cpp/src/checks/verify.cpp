#include "itae/verify.hpp"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "checks/batch_invariance.hpp"

namespace itae {
namespace {

/// The outputs of all samples, a batch at a time.
std::map<std::string, Array> outputs_of(const Session& session, const Golden& golden, std::int64_t size) {
    std::map<std::string, Array> all;
    for (std::int64_t start = 0; start < golden.samples(); start += size) {
        const std::int64_t count = std::min(size, golden.samples() - start);
        const std::uint8_t* input = golden.input.data.data() + static_cast<std::size_t>(start) * session.input_bytes();
        std::vector<Array> found = session.run(input, count);
        for (std::size_t output = 0; output < found.size(); ++output) {
            Array& whole = all[session.manifest().outputs[output].name];
            if (start == 0) {
                whole = std::move(found[output]);
                continue;
            }
            whole.shape.front() += count;
            whole.data.insert(whole.data.end(), found[output].data.begin(), found[output].data.end());
        }
    }
    return all;
}

}  // namespace

Verification verify(const Session& session, std::int64_t batch) {
    const Golden golden = Golden::read(session.manifest());
    const ParityLimits& limits = session.manifest().limits;
    const auto start = std::chrono::steady_clock::now();
    const std::map<std::string, Array> got = outputs_of(session, golden, session.chosen_batch(batch));
    BatchInvariance batches = check_batches(session, golden, limits);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    Parity parity = compare(got, golden, limits);
    std::vector<std::string> failures = parity.failures;
    failures.insert(failures.end(), batches.failures.begin(), batches.failures.end());
    const auto flagged =
        std::count_if(golden.flags.data.begin(), golden.flags.data.end(), [](std::uint8_t flag) { return flag != 0; });
    return {golden.samples(), flagged, std::move(parity), std::move(batches), std::move(failures), seconds};
}

}  // namespace itae
