#include "itae/version.hpp"

namespace itae {

const char* version() noexcept { return ITAE_VERSION; }

}  // namespace itae
