"""Operations that models compute in ways that suit many clients on one device."""
