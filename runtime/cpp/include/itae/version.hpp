#pragma once

#include "itae/export.hpp"
#include "itae/version.h"

namespace itae {

/// Version of the library that is loaded, as `ITAE_VERSION` of the header that it was compiled with.
ITAE_EXPORT const char* version() noexcept;

}  // namespace itae
